import type { ComponentChildren } from 'preact';

/**
 * Text of people and models as paragraphs, code blocks, inline code, emphasis and links. Everything becomes text nodes:
 * nothing in it is ever taken for markup.
 */
export function RichText({ text }: { text: string }) {
  const blocks = text.split(/^```[^\n]*\n?/m);
  return (
    <>
      {blocks.map((block, index) =>
        index % 2 === 1 ? (
          <pre key={index}>
            <code>{block.replace(/\n$/, '')}</code>
          </pre>
        ) : (
          block
            .split(/\n{2,}/)
            .filter((paragraph) => paragraph.trim() !== '')
            .map((paragraph, at) => <p key={`${index}-${at}`}>{inline(paragraph.trim())}</p>)
        ),
      )}
    </>
  );
}

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*|https?:\/\/[^\s<>"'`]+[^\s<>"'`.,;:!?)\]])/g;

function inline(text: string): ComponentChildren[] {
  return text.split(INLINE).map((piece, index) => {
    if (index % 2 === 0) return piece;
    if (piece.startsWith('`')) return <code>{piece.slice(1, -1)}</code>;
    if (piece.startsWith('**')) return <strong>{piece.slice(2, -2)}</strong>;
    return (
      <a href={piece} target="_blank" rel="noopener noreferrer nofollow">
        {piece}
      </a>
    );
  });
}
