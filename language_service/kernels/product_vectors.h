// Products on vectors (tile.h), which read rows where they lie.
#pragma once

#include <algorithm>

#include "pool.h"
#include "tile.h"

namespace tandem::inline TANDEM_SET {

constexpr long kRows = 192;  // most rows of a block

// Prepares a thread for products of blocks of a matrix.
class Products {
 public:
  explicit Products(long /*num_rows*/, long /*step_pairs*/ = 0) {}

  long block_rows() const { return kRows; }
  long padded(long num_rows) const { return num_rows; }  // rows that sums need memory for
};

// Rows of a matrix, as a product reads them.
struct Rows {
  const bf16* first;
  long stride;

  Rows(const bf16* rows, long stride, long /*num_rows*/) : first(rows), stride(stride) {}

  // Returns the part that starts at a row and a pair along K.
  Rows from(long row, long pair) const { return {first + row * stride + 2 * pair, stride, 0}; }
};

// Computes sums[num_rows][64] += rows x piece[pairs][64][2].
template <class Sum>
inline void multiply(const Rows& rows, long num_rows, const bf16* piece, long pairs, Sum* sums) {
  for (long row = 0; row < num_rows; row += kTileRows)
    tile<0>(std::min(kTileRows, num_rows - row), rows.first + row * rows.stride, rows.stride, piece, pairs,
            sums + row * kPanel, Ahead{});
}

// Does the same and prefetches the piece after this one.
template <class Sum>
inline void multiply_and_prefetch(const Rows& rows, long num_rows, const bf16* piece, long pairs, Sum* sums) {
  const char* next = reinterpret_cast<const char*>(piece + pairs * kPairStride);
  const Ahead ahead{next, next + pairs * kPairStride * sizeof(bf16)};
  const long num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  for (long index = 0; index < num_tiles; ++index) {
    const long row = num_rows * index / num_tiles, count = num_rows * (index + 1) / num_tiles - row;
    const bf16* a = rows.first + row * rows.stride;
    const Ahead share = ahead.part(index, num_tiles);
    if (num_tiles == 1)  // four lines per pair
      tile<4>(count, a, rows.stride, piece, pairs, sums + row * kPanel, share);
    else if (num_tiles < 4)
      tile<2>(count, a, rows.stride, piece, pairs, sums + row * kPanel, share);
    else
      tile<1>(count, a, rows.stride, piece, pairs, sums + row * kPanel, share);
  }
}

// Calls work(thread, num_threads, rows) on every thread of the pool. Vectors read rows where they are.
template <class Work>
void run_with_rows(const bf16* x, long num_rows, long width, int num_threads, const Work& work) {
  Pool::shared().run(num_threads, [&](long thread, long threads) { work(thread, threads, Rows(x, width, num_rows)); });
}

}  // namespace tandem::inline TANDEM_SET
