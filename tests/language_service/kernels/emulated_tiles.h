// The tiles of AMX in plain C++, by the pseudo-code of TDPBF16PS and TDPBSSD (Intel 64 and IA-32 Architectures Software Developer's
// Manual, volume 2), to run the kernels on processors without them. In place of tile_registers.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tandem::inline TANDEM_SET {

struct TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

struct Tiles {
  bool configured = false;
  TileShapes shapes;
  alignas(64) char data[8][16][64];
};

inline thread_local Tiles tiles;

// Fails where the processor would raise an exception.
inline void require(bool fine, const char* problem) {
  if (fine) return;
  std::fprintf(stderr, "%s\n", problem);
  std::abort();
}

inline void configure_tiles(const TileShapes& shapes) {
  require(shapes.palette == 1 && shapes.start_row == 0, "the configuration is invalid");
  for (int tile = 0; tile < 8; ++tile)
    require(shapes.rows[tile] >= 1 && shapes.rows[tile] <= 16 && shapes.row_bytes[tile] <= 64, "a tile is too large");
  tiles.configured = true;
  tiles.shapes = shapes;
  std::memset(tiles.data, 0, sizeof tiles.data);
}

inline void release_tiles() { tiles.configured = false; }

template <int Tile>
inline void load_tile(const void* from, long stride) {
  require(tiles.configured, "tiles are not configured");
  for (int row = 0; row < tiles.shapes.rows[Tile]; ++row)
    std::memcpy(tiles.data[Tile][row], static_cast<const char*>(from) + row * stride, tiles.shapes.row_bytes[Tile]);
}

template <int Tile>
inline void store_tile(void* to, long stride) {
  require(tiles.configured, "tiles are not configured");
  for (int row = 0; row < tiles.shapes.rows[Tile]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.data[Tile][row], tiles.shapes.row_bytes[Tile]);
}

// Numbers too small for a normal float32 count as zero, as inputs and as results.
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

inline float wide(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float made;
  std::memcpy(&made, &bits, sizeof made);
  return flushed(made);
}

inline void add_products(float& sum, const char* row, const char (*columns)[64], int n, int num_pairs) {
  const auto* a = reinterpret_cast<const std::uint16_t*>(row);
  float even = 0, odd = 0;
  for (int k = 0; k < num_pairs; ++k) {
    const auto* b = reinterpret_cast<const std::uint16_t*>(columns[k]);
    even = flushed(std::fma(wide(a[2 * k]), wide(b[2 * n]), even));
    odd = flushed(std::fma(wide(a[2 * k + 1]), wide(b[2 * n + 1]), odd));
  }
  sum = flushed(flushed(sum) + flushed(even + odd));
}

inline void add_products(std::int32_t& sum, const char* row, const char (*columns)[64], int n, int num_quads) {
  for (int k = 0; k < 4 * num_quads; ++k)
    sum += static_cast<std::int8_t>(row[k]) * static_cast<std::int8_t>(columns[k / 4][4 * n + k % 4]);
}

template <class Sum, int Sums, int Rows, int Columns>
inline void multiply_tiles() {
  const TileShapes& shapes = tiles.shapes;
  require(tiles.configured && shapes.rows[Sums] == shapes.rows[Rows] && shapes.rows[Columns] * 4 == shapes.row_bytes[Rows],
          "the shapes do not fit");
  for (int m = 0; m < shapes.rows[Sums]; ++m)
    for (int n = 0; n < shapes.row_bytes[Sums] / 4; ++n)
      add_products(reinterpret_cast<Sum*>(tiles.data[Sums][m])[n], tiles.data[Rows][m], tiles.data[Columns], n,
                   shapes.rows[Columns]);
}

}  // namespace tandem::inline TANDEM_SET
