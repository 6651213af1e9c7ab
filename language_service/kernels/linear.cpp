// y = x W^T for bfloat16 weights packed in panels (see panel.h), for one row up to a whole prompt.
//
// With few rows, reading the weights takes all the time. So each thread reads its panels front to back and prefetches
// the next piece while it multiplies this one. With many rows, a piece of a panel stays in the second-level cache.

#include "kernels.h"
#include "product.h"

namespace {

using namespace tandem;

struct Linear {
  const bf16* x;         // [num_rows][width]
  const bf16* panels;    // [ceil(num_columns / 64)][width / 2][64][2]
  const bf16* bias;      // [num_columns] or null
  const bf16* residual;  // [num_rows][num_columns] or null, added to the result
  void* out;             // [num_rows][num_columns], bfloat16 or float32
  long num_rows, width, num_columns;
  bool float_out;
};

// Adds bias and residual to the sums of one panel, rounds them and stores the result.
void finish(const Linear& op, long first_row, long num_rows, long column, const float* sums) {
  for (long v = 0; v < kPanel && column + v < op.num_columns; v += kLanes) {
    const Lanes lanes = first_lanes(op.num_columns - column - v);
    const Floats bias = op.bias ? load(op.bias + column + v, lanes) : splat(0.0f);
    for (long row = 0; row < num_rows; ++row) {
      const long at = (first_row + row) * op.num_columns + column + v;
      Floats sum = add(load(sums + row * kPanel + v), bias);
      if (op.residual) sum = add(sum, load(op.residual + at, lanes));
      if (op.float_out)
        store(static_cast<float*>(op.out) + at, sum, lanes);
      else
        store(static_cast<bf16*>(op.out) + at, sum, lanes);
    }
  }
}

void panel_times_rows(const Linear& op, const Rows& rows, const Products& products, long panel, float* sums) {
  const long pairs = op.width / 2, block = products.block_rows();
  const bf16* columns = op.panels + panel * pairs * kPairStride;
  for (long row = 0; row < op.num_rows; row += block) {
    const long num_rows = std::min(block, op.num_rows - row);
    std::fill_n(sums, products.padded(num_rows) * kPanel, 0.0f);
    for (long pair = 0; pair < pairs; pair += kPiecePairs)
      multiply_and_prefetch(rows.from(row, pair), num_rows, columns + pair * kPairStride,
                            std::min(kPiecePairs, pairs - pair), sums);
    finish(op, row, num_rows, panel * kPanel, sums);
  }
}

}  // namespace

extern "C" void ENTRY(linear)(const bf16* x, const bf16* panels, const bf16* bias, const bf16* residual, void* out,
                              long num_rows, long width, long num_columns, int float_out, int num_threads) {
  const Linear op{x, panels, bias, residual, out, num_rows, width, num_columns, float_out != 0};
  const long num_panels = (num_columns + kPanel - 1) / kPanel;
  run_with_rows(x, num_rows, width, num_threads, [&](long thread, long threads, const Rows& rows) {
    alignas(64) float sums[kRows * kPanel];
    const Products products(num_rows);
    // Neighbouring panels run on the same thread, which then reads contiguous memory.
    for (long panel = num_panels * thread / threads; panel < num_panels * (thread + 1) / threads; ++panel)
      panel_times_rows(op, rows, products, panel, sums);
  });
}
