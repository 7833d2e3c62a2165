import { describe, expect, test } from 'vitest';
import { readCorpus } from '../../src/demo/corpus.js';
import { NgramModel } from '../../src/demo/ngram.js';

describe('n-gram demo model', () => {
  const model = new NgramModel(readCorpus());
  const answer = (prompt: string, seed: number) => [...model.generate(prompt, seed)];

  test('the same prompt and seed give the same words, another seed gives others', () => {
    expect(answer('How do rooms work?', 7)).toEqual(answer('How do rooms work?', 7));
    expect(answer('How do rooms work?', 7)).not.toEqual(answer('How do rooms work?', 8));
  });

  test('an answer has 60 to about 150 tokens, begins with a capital letter and ends with a sentence', () => {
    for (let seed = 0; seed < 40; seed++) {
      const tokens = answer('What happens when a worker is lost?', seed);
      expect(tokens.length, `seed ${seed}`).toBeGreaterThanOrEqual(60);
      expect(tokens.length, `seed ${seed}`).toBeLessThanOrEqual(151);
      expect(tokens.join(''), `seed ${seed}`).toMatch(/^\p{Lu}[\s\S]*[.!?]$/u);
    }
  });

  test('an answer has to do with the prompt where the corpus does', () => {
    expect(answer('Tell me about the worker', 3).join('').toLowerCase()).toContain('worker');
  });

  test('it works where nothing of the repository is at hand', () => {
    const alone = new NgramModel(readCorpus('/nowhere'));
    expect([...alone.generate('hello', 1)].length).toBeGreaterThanOrEqual(60);
  });
});
