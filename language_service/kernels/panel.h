// The layout of packed columns, see tile.h.
#pragma once

namespace tandem {

constexpr long kPanel = 64;               // columns per panel
constexpr long kPairStride = 2 * kPanel;  // elements from one pair along K to the next
constexpr long kPiecePairs = 256;         // of a panel at a time: 64 KiB, so that two pieces and the rows fit into the cache
constexpr long kTileRows = 6;             // on vectors, 6 x 4 sums fill 32 registers
constexpr long kLine = 64;                // bytes per cache line

}  // namespace tandem
