// The layout of packed columns, see tile.h, and how they are prefetched.
#pragma once

namespace tandem {

constexpr long kPanel = 64;               // columns per panel
constexpr long kPairStride = 2 * kPanel;  // elements from one pair along K to the next
constexpr long kPiecePairs = 256;         // of a panel at a time: 64 KiB, so that two pieces and the rows fit into the cache
constexpr long kTileRows = 6;             // on vectors, 6 x 4 sums fill 32 registers
constexpr long kLine = 64;                // bytes per cache line

// Cache lines that are read next. A loop over the current piece fetches the next one little by little: many at once would
// wait for memory.
struct Ahead {
  const char *next, *end;

  // Returns one of `count` parts of equal size.
  Ahead part(long index, long count) const {
    const long lines = (end - next) / kLine;
    return {next + lines * index / count * kLine, next + lines * (index + 1) / count * kLine};
  }

  // Fetches some lines into the second-level cache, if any are left.
  void fetch(long lines) {
    if (next >= end) return;
#pragma GCC unroll 4
    for (long line = 0; line < lines; ++line) __builtin_prefetch(next + line * kLine, 0, 2);
    next += lines * kLine;
  }
};

}  // namespace tandem
