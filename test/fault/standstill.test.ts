import { expect, test } from 'vitest';
import { Standstill } from './load/standstill.js';

const s = (seconds: number) => seconds * 1e6;

test('what a process reads after it stood still was given meanwhile, and at no other time is its age believed', () => {
  const standstill = new Standstill(s(0));
  for (let t = 0; t <= 10; t += 0.5) standstill.beat(s(t));
  expect(standstill.given(s(10), s(3))).toBe(s(10));
  // Frozen from 10 to 28; the first thing it does is to read.
  expect(standstill.given(s(28), s(16))).toBe(s(12));
  standstill.beat(s(28.1));
  expect(standstill.given(s(28.5), s(1))).toBe(s(27.5));
  expect(standstill.given(s(29), s(60))).toBe(s(10));
  expect(standstill.given(s(29.5), s(-1))).toBe(s(29.5));
  standstill.beat(s(30.1));
  expect(standstill.given(s(30.5), s(3))).toBe(s(30.5));
});
