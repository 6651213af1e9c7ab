// Where the time of an answer went.

const clamp = (value, most) => Math.max(0, Math.min(value, most));

/**
 * Split the total time into parts that follow each other and add up to it.
 *
 * Stages overlap: text before an image is prefilled while the image is encoded. Such time counts for the image. Times
 * are milliseconds, as the server reports them: `prepare` and `vision` begin with the request, `first_token` ends the
 * prefill, `total` ends the answer.
 */
export function timeline(times) {
  const total = Math.max(times.total, times.first_token);
  const untilToken = times.first_token || total;
  const prepare = clamp(times.prepare, untilToken);
  const vision = clamp(times.vision - prepare, untilToken - prepare);
  const prefill = clamp(times.prefill, untilToken - prepare - vision);
  const queue = clamp(times.queue, untilToken - prepare - vision - prefill);
  const decode = clamp(times.decode, total - untilToken);
  const other = Math.max(0, total - vision - queue - prefill - decode);
  return { vision, queue, prefill, decode, other };
}
