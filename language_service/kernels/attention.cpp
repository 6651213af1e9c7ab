// Attention straight from the blocks of the paged cache, for decoding, prefill in chunks, and any mix of them.
//
// One unit of work is a stretch of new tokens of one sequence with all query heads of one key-value head, so that each
// key is read once for the group. It goes through the context in tiles of 64 positions: keys and values of a tile are
// brought into panels (tile.h), and the softmax is kept up tile by tile (Milakov and Gimelshein, 2018). Tiles begin at
// multiples of 64 whatever is new, so a token's result is the same to the bit however its sequence was cut.

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"
#include "tile.h"

namespace {

using namespace tandem;

constexpr long kMaxRows = 96;  // query rows of a unit: tokens x heads of a group
constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e30f;  // below every score, and finite, so that differences are never NaN

struct Attention {
  const bf16 *q, *k, *v;  // of the new tokens, each [.., heads, size], a row to the next being `stride` elements
  bf16* keys;             // of the layer: [blocks][block_size][kv_heads][size]
  bf16* values;
  const std::int32_t* spans;   // [num_spans][4]: first row in the batch, start, length, place of its table in `tables`
  const std::int32_t* tables;  // blocks of the sequences, end to end
  bf16* out;                   // [rows][heads][size]
  long stride, num_spans, heads, kv_heads, size, block_size;
};

struct Unit {
  long span, kv_head, first, num_tokens;
};

struct Span {
  long row, start, length;
  const std::int32_t* blocks;

  Span(const Attention& op, long index)
      : row(op.spans[4 * index]),
        start(op.spans[4 * index + 1]),
        length(op.spans[4 * index + 2]),
        blocks(op.tables + op.spans[4 * index + 3]) {}
};

long slot(const Attention& op, const Span& span, long position) {
  return span.blocks[position / op.block_size] * op.block_size + position % op.block_size;
}

// What one thread computes in; everything but `nothing` is overwritten before it is read.
struct Scratch {
  long size;  // of a head
  std::vector<bf16> queries, weights, key_panel, value_panels, nothing;
  std::vector<float> scores, sums, largest, total;

  explicit Scratch(long size)
      : size(size),
        queries(kMaxRows * size),
        weights(kMaxRows * kPanel),
        key_panel(size * kPanel),
        value_panels(num_value_panels(size) * kPanel * kPanel),
        nothing(size),
        scores(kMaxRows * kPanel),
        sums(num_value_panels(size) * kMaxRows * kPanel),
        largest(kMaxRows),
        total(kMaxRows) {}

  static long num_value_panels(long size) { return (size + kPanel - 1) / kPanel; }
};

// Writes 16 rows of 32 elements, given by address, as 16 pairs of a panel: a transposition of 16 x 16 words.
void pack_keys(const bf16* const* rows, long element, bf16* to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(rows[i] + element);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // r[4 i + j] holds word 4 l + j of rows 4 i to 4 i + 3 in its quarter l.
  for (int j = 0; j < 4; ++j) {
    const __m512i low02 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i low13 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i high02 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i high13 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_si512(to + (0 + j) * kPairStride, _mm512_shuffle_i32x4(low02, high02, 0x88));
    _mm512_storeu_si512(to + (4 + j) * kPairStride, _mm512_shuffle_i32x4(low13, high13, 0x88));
    _mm512_storeu_si512(to + (8 + j) * kPairStride, _mm512_shuffle_i32x4(low02, high02, 0xdd));
    _mm512_storeu_si512(to + (12 + j) * kPairStride, _mm512_shuffle_i32x4(low13, high13, 0xdd));
  }
}

// Writes 32 elements of two neighbouring rows side by side.
void pack_values(const bf16* even, const bf16* odd, bf16* to) {
  alignas(64) static constexpr std::uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(to + 2 * kLanes, _mm512_permutex2var_epi16(a, high, b));
}

// Finds where the 64 positions from `first` on lie; returns how many of them come before `end`.
long find_slots(const Attention& op, const Span& span, long first, long end, long* slots) {
  const long count = std::clamp(end - first, 0L, kPanel);
  const std::int32_t* block = span.blocks + first / op.block_size;
  for (long i = 0, offset = first % op.block_size; i < count; ++i) {
    slots[i] = *block * op.block_size + offset;
    if (++offset == op.block_size) ++block, offset = 0;
  }
  return count;
}

// Brings keys and values at positions first to first + 63, those from `end` on being zeros, into panels.
void pack_tile(const Attention& op, const Span& span, long kv_head, long first, long end, Scratch& own) {
  long slots[kPanel];
  const long count = find_slots(op, span, first, end, slots);
  const bf16 *keys[kPanel], *values[kPanel];
  for (long i = 0; i < kPanel; ++i) {
    const long at = i < count ? (slots[i] * op.kv_heads + kv_head) * op.size : 0;
    keys[i] = i < count ? op.keys + at : own.nothing.data();
    values[i] = i < count ? op.values + at : own.nothing.data();
  }
  for (long i = 0; i < kPanel; i += kLanes)
    for (long element = 0; element < op.size; element += 2 * kLanes)
      pack_keys(keys + i, element, own.key_panel.data() + element / 2 * kPairStride + 2 * i);
  for (long i = 0; i < kPanel; i += 2)
    for (long element = 0; element < op.size; element += 2 * kLanes)
      pack_values(values[i] + element, values[i + 1] + element,
                  own.value_panels.data() + element / kPanel * kPanel * kPanel + i * kPanel + 2 * (element % kPanel));
}

// Fetches what pack_tile will read next, while the tile before it is computed.
void fetch_tile(const Attention& op, const Span& span, long kv_head, long first, long end) {
  long slots[kPanel];
  const long count = find_slots(op, span, first, end, slots);
  for (long i = 0; i < count; ++i) {
    const long at = (slots[i] * op.kv_heads + kv_head) * op.size;
    for (long element = 0; element < op.size; element += kLine / static_cast<long>(sizeof(bf16))) {
      _mm_prefetch(reinterpret_cast<const char*>(op.keys + at + element), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(op.values + at + element), _MM_HINT_T1);
    }
  }
}

// Turns one row's scores of a tile, of which it sees the first `num_seen`, into weights; rescales its sums so far.
void weigh(const Attention& op, long row, long num_seen, float scale, Scratch& own) {
  float* scores = own.scores.data() + row * kPanel;
  __m512 s[4], top = _mm512_set1_ps(own.largest[row]);
  for (int v = 0; v < 4; ++v) {
    s[v] = _mm512_mul_ps(_mm512_loadu_ps(scores + v * kLanes), _mm512_set1_ps(scale));
    top = _mm512_mask_max_ps(top, first_lanes(std::max(0L, num_seen - v * kLanes)), top, s[v]);
  }
  const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(top));
  const __m512 shrink = exp2(_mm512_sub_ps(_mm512_set1_ps(own.largest[row]), largest));
  __m512 total = _mm512_setzero_ps();
  for (int v = 0; v < 4; ++v) {
    const __mmask16 seen = first_lanes(std::max(0L, num_seen - v * kLanes));
    const __m512 weights = _mm512_maskz_mov_ps(seen, exp2(_mm512_sub_ps(s[v], largest)));
    store(own.weights.data() + row * kPanel + v * kLanes, weights);
    total = _mm512_add_ps(total, weights);
  }
  own.total[row] = own.total[row] * _mm512_cvtss_f32(shrink) + _mm512_reduce_add_ps(total);
  if (own.largest[row] == _mm512_cvtss_f32(largest)) return;  // then `shrink` is 1
  own.largest[row] = _mm512_cvtss_f32(largest);
  for (long panel = 0; panel < Scratch::num_value_panels(op.size); ++panel) {
    float* sums = own.sums.data() + (panel * kMaxRows + row) * kPanel;
    for (long v = 0; v < kPanel; v += kLanes)
      _mm512_storeu_ps(sums + v, _mm512_mul_ps(_mm512_loadu_ps(sums + v), shrink));
  }
}

// Multiplies `num_rows` rows of `stride` elements by a panel.
void multiply(const bf16* rows, long stride, long num_rows, const bf16* panel, long pairs, float* sums) {
  for (long row = 0; row < num_rows; row += kTileRows) {
    const long count = std::min(kTileRows, num_rows - row);
    tile<0>(count, rows + row * stride, stride, panel, pairs, sums + row * kPanel, nullptr);
  }
}

void store_results(const Attention& op, const Span& span, const Unit& unit, const Scratch& own) {
  const long group = op.heads / op.kv_heads;
  for (long row = 0; row < unit.num_tokens * group; ++row) {
    const long token = span.row + unit.first + row / group, head = unit.kv_head * group + row % group;
    const __m512 share = _mm512_set1_ps(1.0f / own.total[row]);
    for (long element = 0; element < op.size; element += kLanes) {
      const float* sums = own.sums.data() + (element / kPanel * kMaxRows + row) * kPanel + element % kPanel;
      store(op.out + (token * op.heads + head) * op.size + element, _mm512_mul_ps(_mm512_loadu_ps(sums), share));
    }
  }
}

void attend(const Attention& op, const Unit& unit, Scratch& own) {
  const Span span(op, unit.span);
  const long group = op.heads / op.kv_heads, num_rows = unit.num_tokens * group;
  for (long row = 0; row < num_rows; ++row) {
    const long token = span.row + unit.first + row / group, head = unit.kv_head * group + row % group;
    std::memcpy(own.queries.data() + row * op.size, op.q + token * op.stride + head * op.size, op.size * sizeof(bf16));
  }
  for (long panel = 0; panel < Scratch::num_value_panels(op.size); ++panel)
    std::fill_n(own.sums.data() + panel * kMaxRows * kPanel, num_rows * kPanel, 0.0f);
  std::fill_n(own.total.data(), num_rows, 0.0f);
  std::fill_n(own.largest.data(), num_rows, kLowest);
  const float scale = kLog2E / std::sqrt(static_cast<float>(op.size));
  const long position = span.start + unit.first, end = position + unit.num_tokens;
  for (long first = 0; first < end; first += kPanel) {
    pack_tile(op, span, unit.kv_head, first, end, own);
    fetch_tile(op, span, unit.kv_head, first + kPanel, end);
    std::fill_n(own.scores.data(), num_rows * kPanel, 0.0f);
    multiply(own.queries.data(), op.size, num_rows, own.key_panel.data(), op.size / 2, own.scores.data());
    for (long token = 0, row = 0; token < unit.num_tokens; ++token)
      for (long head = 0; head < group; ++head, ++row) weigh(op, row, position + token + 1 - first, scale, own);
    for (long panel = 0; panel < Scratch::num_value_panels(op.size); ++panel)
      multiply(own.weights.data(), kPanel, num_rows, own.value_panels.data() + panel * kPanel * kPanel, kPanel / 2,
               own.sums.data() + panel * kMaxRows * kPanel);
  }
  store_results(op, span, unit, own);
}

std::vector<Unit> units_of(const Attention& op) {
  std::vector<Unit> units;
  const long step = std::max(1L, kMaxRows / (op.heads / op.kv_heads));
  for (long index = 0; index < op.num_spans; ++index) {
    const long length = Span(op, index).length;
    // The last stretch sees most and so takes longest: first come, first served works best from there.
    for (long first = (length - 1) / step * step; first >= 0; first -= step)
      for (long kv_head = 0; kv_head < op.kv_heads; ++kv_head)
        units.push_back({index, kv_head, first, std::min(step, length - first)});
  }
  return units;
}

// Stores keys and values of the new tokens that fall to one thread.
void remember(const Attention& op, long thread, long threads) {
  const long width = op.kv_heads * op.size;
  for (long index = 0; index < op.num_spans; ++index) {
    const Span span(op, index);
    for (long i = 0; i < span.length; ++i) {
      if ((span.row + i) % threads != thread) continue;
      const long at = slot(op, span, span.start + i) * width, from = (span.row + i) * op.stride;
      std::memcpy(op.keys + at, op.k + from, width * sizeof(bf16));
      std::memcpy(op.values + at, op.v + from, width * sizeof(bf16));
    }
  }
}

}  // namespace

extern "C" void tandem_attention(const bf16* q, const bf16* k, const bf16* v, bf16* keys, bf16* values,
                                 const std::int32_t* spans, const std::int32_t* tables, bf16* out, long stride,
                                 long num_spans, long heads, long kv_heads, long size, long block_size,
                                 int num_threads) {
  const Attention op{q, k, v, keys, values, spans, tables, out, stride, num_spans, heads, kv_heads, size, block_size};
  const std::vector<Unit> units = units_of(op);
  const long num_units = static_cast<long>(units.size());
  Pool::shared().run(num_threads, [&op](long thread, long threads) { remember(op, thread, threads); });
  std::atomic<long> next{0};  // units differ in length, so whoever is free takes the next
  Pool::shared().run(num_threads, [&](long, long) {
    thread_local Scratch own(0);
    if (own.size != size) own = Scratch(size);
    for (long index = next++; index < num_units; index = next++) attend(op, units[index], own);
  });
}
