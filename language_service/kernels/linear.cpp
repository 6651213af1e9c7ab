// y = x W^T for bfloat16 weights packed in panels (see tile.h), for one row up to a whole prompt.
//
// With few rows, reading the weights takes all the time. So each thread reads its panels front to back and prefetches
// the next piece while it multiplies this one. With many rows, a piece of a panel stays in the second-level cache.

#include "kernels.h"
#include "pool.h"
#include "tile.h"

namespace {

using namespace tandem;

constexpr long kPairs = 256;  // per piece of a panel: 64 KiB, so that two pieces and the rows fit into the cache
constexpr long kRows = 192;   // multiplied by a panel at a time

struct Linear {
  const bf16* x;         // [num_rows][width]
  const bf16* panels;    // [ceil(num_columns / 64)][width / 2][64][2]
  const bf16* bias;      // [num_columns] or null
  const bf16* residual;  // [num_rows][num_columns] or null, added to the result
  void* out;             // [num_rows][num_columns], bfloat16 or float32
  long num_rows, width, num_columns;
  bool float_out;
};

// Multiplies rows by one piece of a panel and prefetches the piece after it.
void multiply(const bf16* rows, long stride, long num_rows, const bf16* piece, long pairs, float* sums) {
  const char* ahead = reinterpret_cast<const char*>(piece + pairs * kPairStride);
  const long num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  // Lines to prefetch per tile, of 4 per pair: the tiles share the work.
  const long lines = num_tiles == 1 ? 4 : num_tiles < 4 ? 2 : 1;
  for (long index = 0; index < num_tiles; ++index) {
    const long row = num_rows * index / num_tiles, count = num_rows * (index + 1) / num_tiles - row;
    const bf16* a = rows + row * stride;
    float* c = sums + row * kPanel;
    const char* from = ahead + index * lines * pairs * kLine;
    if (index * lines >= 4)
      tile<0>(count, a, stride, piece, pairs, c, nullptr);
    else if (lines == 4)
      tile<4>(count, a, stride, piece, pairs, c, from);
    else if (lines == 2)
      tile<2>(count, a, stride, piece, pairs, c, from);
    else
      tile<1>(count, a, stride, piece, pairs, c, from);
  }
}

// Adds bias and residual to the sums of one panel, rounds them and stores the result.
void finish(const Linear& op, long first_row, long num_rows, long column, const float* sums) {
  for (long v = 0; v < kPanel && column + v < op.num_columns; v += kLanes) {
    const __mmask16 lanes = first_lanes(op.num_columns - column - v);
    const __m512 bias = op.bias ? load(op.bias + column + v, lanes) : _mm512_setzero_ps();
    for (long row = 0; row < num_rows; ++row) {
      const long at = (first_row + row) * op.num_columns + column + v;
      __m512 sum = _mm512_add_ps(_mm512_loadu_ps(sums + row * kPanel + v), bias);
      if (op.residual) sum = _mm512_add_ps(sum, load(op.residual + at, lanes));
      if (op.float_out)
        _mm512_mask_storeu_ps(static_cast<float*>(op.out) + at, lanes, sum);
      else
        store(static_cast<bf16*>(op.out) + at, sum, lanes);
    }
  }
}

void panel_times_rows(const Linear& op, long panel, float* sums) {
  const long pairs = op.width / 2;
  const bf16* columns = op.panels + panel * pairs * kPairStride;
  for (long row = 0; row < op.num_rows; row += kRows) {
    const long num_rows = std::min(kRows, op.num_rows - row);
    std::fill_n(sums, num_rows * kPanel, 0.0f);
    for (long pair = 0; pair < pairs; pair += kPairs)
      multiply(op.x + row * op.width + 2 * pair, op.width, num_rows, columns + pair * kPairStride,
               std::min(kPairs, pairs - pair), sums);
    finish(op, row, num_rows, panel * kPanel, sums);
  }
}

}  // namespace

extern "C" void tandem_linear(const bf16* x, const bf16* panels, const bf16* bias, const bf16* residual, void* out,
                              long num_rows, long width, long num_columns, int float_out, int num_threads) {
  const Linear op{x, panels, bias, residual, out, num_rows, width, num_columns, float_out != 0};
  const long num_panels = (num_columns + kPanel - 1) / kPanel;
  // Neighbouring panels run on the same thread, which then reads contiguous memory.
  split_evenly(num_threads, num_panels, [&op](long panel) {
    alignas(64) float sums[kRows * kPanel];
    panel_times_rows(op, panel, sums);
  });
}
