// Products on the tiles of AMX. A panel is read as it is: 16 pairs of 16 columns are a tile, 256 bytes from pair to pair.
//
// Rows and panels of signed bytes have the same form, with four bytes in place of two numbers. Their sums are integers.
//
// A matrix of M rows takes T = ceil(M / 16) tiles of R = ceil(M / T) rows, so that one configuration serves a call. The
// sums of a row do not depend on T, R or the other rows. So its result is the same, bit by bit, in every batch.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>

#include "pool.h"
#if defined(TANDEM_EMULATED_TILES)
#include "emulated_tiles.h"  // of the tests
#else
#include "tile_registers.h"
#endif

namespace tandem::inline TANDEM_SET {

constexpr long kBlockTiles = 16;        // most tiles of rows of a block
constexpr long kRows = 16 * kBlockTiles;  // most rows of a block
constexpr long kStepPairs = 16;         // of one instruction
constexpr long kStep = 2 * kStepPairs;  // elements of a row
constexpr long kOwnRows = 64;           // up to which every thread packs all rows for itself
constexpr long kSumBytes = kPanel * sizeof(float);

inline long tiles_of(long num_rows) { return (num_rows + 15) / 16; }

// Returns R.
inline long tile_height(long num_rows) {
  const long tiles = std::max(1L, tiles_of(num_rows));
  return std::max(1L, (num_rows + tiles - 1) / tiles);
}

// Prepares a thread for products of blocks of a matrix of `num_rows` rows, as long as it exists. Tiles 0 to 3 hold sums,
// 4 and 5 rows, 6 and 7 columns. Steps along K may be shorter than 16 pairs.
class Products {
 public:
  explicit Products(long num_rows, long step_pairs = kStepPairs) : height_(tile_height(num_rows)) {
    TileShapes shapes;
    std::fill_n(shapes.row_bytes, 8, 64);
    std::fill_n(shapes.row_bytes + 4, 2, 4 * step_pairs);
    std::fill_n(shapes.rows, 6, height_);
    std::fill_n(shapes.rows + 6, 2, step_pairs);
    configure_tiles(shapes);
  }
  ~Products() { release_tiles(); }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  long block_rows() const { return kBlockTiles * height_; }
  long padded(long num_rows) const { return (num_rows + height_ - 1) / height_ * height_; }

 private:
  long height_;
};

// Rows of a matrix, as a product reads them. Distances are in elements.
struct Rows {
  const bf16* first;
  long stride, step, tile, height;  // to the next row of a tile, to its next step along K, to the next tile, rows of each

  // Rows where they are, `stride` elements apart. Padded to whole tiles.
  Rows(const bf16* rows, long stride, long num_rows)
      : first(rows), stride(stride), step(kStep), tile(tile_height(num_rows) * stride), height(tile_height(num_rows)) {}

  // Rows packed as [tiles][width / 32][height][32].
  static Rows packed(const bf16* rows, long width, long height) {
    Rows made(rows, kStep, height);
    made.step = height * kStep;
    made.tile = height * width;
    return made;
  }

  // Returns the part that starts at a row, where a tile starts, and a pair along K, where a step starts.
  Rows from(long row, long pair) const {
    Rows part = *this;
    part.first += row / height * tile + pair / kStepPairs * step + pair % kStepPairs * 2;
    return part;
  }
};

// Fetches the piece of a panel that follows, a quarter of a step's share at a time.
struct Quarters {
  Ahead ahead;
  long lines;  // per quarter of a step

  void fetch() { ahead.fetch(lines); }
};

template <class Sum, int Sums, int Columns, int Rows>
inline void load_and_multiply(const bf16* columns) {
  load_tile<Columns>(columns, kPairStride * sizeof(bf16));
  multiply_tiles<Sum, Sums, Rows, Columns>();
}

// Computes two tiles of rows times 32 columns.
template <class Sum>
inline void two_by_two(const Rows& rows, const bf16* piece, long steps, Sum* sums, Quarters& ahead) {
  Sum* const below = sums + rows.height * kPanel;
  const long row_bytes = rows.stride * sizeof(bf16), column_bytes = kPairStride * sizeof(bf16);
  load_tile<0>(sums, kSumBytes), load_tile<1>(sums + 16, kSumBytes);
  load_tile<2>(below, kSumBytes), load_tile<3>(below + 16, kSumBytes);
  for (long step = 0; step < steps; ++step) {
    const bf16* const a = rows.first + step * rows.step;
    const bf16* const b = piece + step * kStepPairs * kPairStride;
    load_tile<6>(b, column_bytes);
    load_tile<4>(a, row_bytes);
    ahead.fetch();
    multiply_tiles<Sum, 0, 4, 6>();
    load_tile<7>(b + 2 * 16, column_bytes);
    ahead.fetch();
    multiply_tiles<Sum, 1, 4, 7>();
    load_tile<5>(a + rows.tile, row_bytes);
    ahead.fetch();
    multiply_tiles<Sum, 2, 5, 6>();
    ahead.fetch();
    multiply_tiles<Sum, 3, 5, 7>();
  }
  store_tile<0>(sums, kSumBytes), store_tile<1>(sums + 16, kSumBytes);
  store_tile<2>(below, kSumBytes), store_tile<3>(below + 16, kSumBytes);
}

// Computes one tile of rows times 64 columns.
template <class Sum>
inline void one_by_four(const Rows& rows, const bf16* piece, long steps, Sum* sums, Quarters& ahead) {
  const long row_bytes = rows.stride * sizeof(bf16);
  load_tile<0>(sums, kSumBytes), load_tile<1>(sums + 16, kSumBytes);
  load_tile<2>(sums + 32, kSumBytes), load_tile<3>(sums + 48, kSumBytes);
  for (long step = 0; step < steps; ++step) {
    const bf16* const b = piece + step * kStepPairs * kPairStride;
    load_tile<4>(rows.first + step * rows.step, row_bytes);
    load_and_multiply<Sum, 0, 6, 4>(b);
    ahead.fetch();
    load_and_multiply<Sum, 1, 7, 4>(b + 2 * 16);
    ahead.fetch();
    load_and_multiply<Sum, 2, 6, 4>(b + 2 * 32);
    ahead.fetch();
    load_and_multiply<Sum, 3, 7, 4>(b + 2 * 48);
    ahead.fetch();
  }
  store_tile<0>(sums, kSumBytes), store_tile<1>(sums + 16, kSumBytes);
  store_tile<2>(sums + 32, kSumBytes), store_tile<3>(sums + 48, kSumBytes);
}

template <class Sum>
inline void multiply(const Rows& rows, long num_rows, const bf16* piece, long pairs, Sum* sums, Quarters& ahead) {
  const long num_tiles = (num_rows + rows.height - 1) / rows.height, steps = (pairs + kStepPairs - 1) / kStepPairs;
  for (long tile = 0; tile < num_tiles; tile += 2) {
    const Rows part = rows.from(tile * rows.height, 0);
    Sum* const to = sums + tile * rows.height * kPanel;
    if (tile + 1 == num_tiles) return one_by_four(part, piece, steps, to, ahead);
    two_by_two(part, piece, steps, to, ahead);
    two_by_two(part, piece + 2 * 32, steps, to + 32, ahead);
  }
}

// Computes sums[num_rows][64] += rows x piece[pairs][64][2]. `pairs` are whole steps. Sums and rows are padded.
template <class Sum>
inline void multiply(const Rows& rows, long num_rows, const bf16* piece, long pairs, Sum* sums) {
  Quarters nothing{};
  multiply(rows, num_rows, piece, pairs, sums, nothing);
}

// Does the same and prefetches the piece after this one: 64 lines a step, which the tiles of rows share.
template <class Sum>
inline void multiply_and_prefetch(const Rows& rows, long num_rows, const bf16* piece, long pairs, Sum* sums) {
  const char* const next = reinterpret_cast<const char*>(piece + pairs * kPairStride);
  const long num_tiles = (num_rows + rows.height - 1) / rows.height;
  Quarters ahead{{next, next + pairs * kPairStride * sizeof(bf16)}, (16 + num_tiles - 1) / num_tiles};
  multiply(rows, num_rows, piece, pairs, sums, ahead);
}

// Rows of x in the order in which tiles read them. Rows past the end are zeros.
class PackedRows {
 public:
  PackedRows(const bf16* x, long num_rows, long width)
      : x_(x), num_rows_(num_rows), width_(width), height_(tile_height(num_rows)) {
    lines_ = std::make_unique_for_overwrite<Line[]>(num_tiles() * height_ * width / kStep);
  }

  long num_tiles() const { return (num_rows_ + height_ - 1) / height_; }
  Rows rows() const { return Rows::packed(lines_[0].elements, width_, height_); }

  void pack(long tile) {
    Line* to = lines_.get() + tile * height_ * width_ / kStep;
    for (long element = 0; element < width_; element += kStep)
      for (long row = tile * height_; row < (tile + 1) * height_; ++row, ++to) {
        if (row < num_rows_)
          std::memcpy(to->elements, x_ + row * width_ + element, sizeof to->elements);
        else
          std::memset(to->elements, 0, sizeof to->elements);
      }
  }

 private:
  struct alignas(64) Line {
    bf16 elements[kStep];
  };

  const bf16* x_;
  long num_rows_, width_, height_;
  std::unique_ptr<Line[]> lines_;
};

// Calls work(thread, num_threads, rows) on every thread of the pool. The threads pack many rows together. Waiting for
// each other would take longer than packing a few.
template <class Work>
void run_with_rows(const bf16* x, long num_rows, long width, int num_threads, const Work& work) {
  if (num_rows > kOwnRows) {
    PackedRows all(x, num_rows, width);
    split_evenly(num_threads, all.num_tiles(), [&](long tile) { all.pack(tile); });
    return Pool::shared().run(num_threads, [&](long thread, long threads) { work(thread, threads, all.rows()); });
  }
  if (num_rows == 0) return;
  Pool::shared().run(num_threads, [&](long thread, long threads) {
    PackedRows own(x, num_rows, width);
    for (long tile = 0; tile < own.num_tiles(); ++tile) own.pack(tile);
    work(thread, threads, own.rows());
  });
}

}  // namespace tandem::inline TANDEM_SET
