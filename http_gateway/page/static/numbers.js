// Numbers as people read them.

const whole = new Intl.NumberFormat("en-US");

export const count = (value) => whole.format(Math.round(Number(value)));

/** Write a share in percent. Near 0 and 1 it has a decimal, so that only nothing is 0 and only all is 100. */
export function percent(share) {
  const isNearEnd = (share > 0 && share < 0.1) || (share > 0.99 && share < 1);
  return `${(100 * share).toFixed(isNearEnd ? 1 : 0)} %`;
}

/** Write a time of some milliseconds: '0.4 ms', '38 ms', '1.24 s', '2 min 5 s'. */
export function milliseconds(ms) {
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_995) return `${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

export const seconds = (value) => milliseconds(1000 * value);

/** Write the time of day of a Unix time. */
export const clock = (at_s) => new Date(1000 * at_s).toLocaleTimeString("en-GB");
