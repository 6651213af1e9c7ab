// The instructions of AMX.
//
// gcc 12's intrinsics declare too little of the memory that they read, so stores could move past them. These declare
// all memory.
#pragma once

#include <cstdint>
#include <type_traits>

namespace tandem::inline TANDEM_SET {

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

inline void configure_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }

inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

// Rows in memory lie `stride` bytes apart.
template <int Tile>
inline void load_tile(const void* from, long stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
inline void store_tile(void* to, long stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}

// Adds the product of `Rows` and `Columns` to `Sums`: of bfloat16 to sums of float, of signed bytes to sums of integers.
template <class Sum, int Sums, int Rows, int Columns>
inline void multiply_tiles() {
  if constexpr (std::is_same_v<Sum, float>)
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Rows), "i"(Columns));
  else
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Rows), "i"(Columns));
}

}  // namespace tandem::inline TANDEM_SET
