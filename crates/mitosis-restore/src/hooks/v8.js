(() => { try {
  const seed = '0000000000000000';
  const word = (at) => parseInt(seed.slice(at, at + 8), 16) | 0;
  // splitmix32 spreads the seed over the state of xoshiro128**.
  let mix = word(0);
  const next = () => {
    mix = (mix + 0x9e3779b9) | 0;
    let z = mix ^ word(8);
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return z ^ (z >>> 15);
  };
  let a = next(), b = next(), c = next(), d = next() | 1;
  const step = () => {
    const x = Math.imul(b, 5), result = Math.imul((x << 7) | (x >>> 25), 9), t = b << 9;
    c ^= a; d ^= b; b ^= c; a ^= d; c ^= t; d = (d << 11) | (d >>> 21);
    return result;
  };
  const value = () => ((step() >>> 5) * 67108864 + (step() >>> 6)) / 9007199254740992;
  const random = { random() { return value(); } }.random;
  const as = { value: random, writable: true, enumerable: false, configurable: true };
  Object.defineProperty(Math, 'random', as);
  // Random bytes that were drawn ahead of their use are used up.
  const loaded = typeof process === 'object' && Array.isArray(process.moduleLoadList) &&
      process.moduleLoadList.includes('NativeModule crypto');
  const load = loaded && (process.getBuiltinModule ?? process.mainModule?.require);
  const crypto = load ? load.call(process.mainModule ?? process, 'crypto') : undefined;
  if (crypto?.randomUUID) for (let i = 0; i < 128; i++) crypto.randomUUID();
  if (crypto?.randomInt) for (let i = 0; i < 1100; i++) crypto.randomInt(65536);
  if (typeof process === 'object') process.emit?.('mitosis:fork', seed);
  return true;
} catch (error) {
  // Uncaught it would end the process in a way that waits for threads which do not run yet.
  if (typeof process === 'object') process._rawDebug?.(error?.stack ?? `${error}`);
  return false;
} })()
