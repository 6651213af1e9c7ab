// Attention of a vision tower: full within each image, with rotated queries and keys.
//
// A unit of work is one head of one image. It rotates its keys, and packs keys and values into panels (panel.h) once. Then
// it goes through the queries, a few rows at a time, and through the panels for each, and updates the softmax tile by tile
// (Milakov and Gimelshein, 2018).

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "entry.h"
#include "panel.h"
#include "pool.h"
#include "vec.h"

namespace {

using namespace tandem;

constexpr long kRows = 48;  // queries at a time
constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e30f;  // below every score, but finite, so that no difference is NaN

struct Attention {
  const bf16* qkv;          // [patches][3][heads][size]
  const float *cos, *sin;   // [patches][size / 2]
  bf16* out;                // [patches][heads][size]
  long heads, size;

  long pairs() const { return size / 2; }
  long vectors() const { return (size + kLanes - 1) / kLanes; }  // of one value
  const bf16* row(long patch, long part, long head) const { return qkv + ((patch * 3 + part) * heads + head) * size; }
};

struct Unit {
  long first, length, head;  // first patch of the image, its patches

  long num_tiles() const { return (length + kPanel - 1) / kPanel; }
};

// Buffers of one thread, for images of up to `length` patches.
struct Buffers {
  Buffers(const Attention& op, long length)
      : keys(op.pairs() * round_up(length) * 2),
        values(op.vectors() * kLanes * round_up(length)),
        queries(kRows * op.size),
        weights(kRows * kPanel),
        scores(kRows * kPanel),
        sums(kRows * op.vectors() * kLanes),
        largest(kRows),
        total(kRows) {}

  static long round_up(long length) { return (length + kPanel - 1) / kPanel * kPanel; }

  std::vector<bf16> keys, values, queries, weights;
  std::vector<float> scores, sums, largest, total;
};

// Computes out[M][16 V] (+)= rows[M][2 * pairs] x panel[pairs][16 V][2].
template <int M, int V, bool Add>
inline void multiply(const bf16* rows, long stride, const bf16* panel, long pair_stride, long pairs, float* out,
                     long out_stride) {
  __m512 acc[M][V];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      acc[m][v] = Add ? _mm512_loadu_ps(out + m * out_stride + v * kLanes) : splat(0.0f);
  for (long pair = 0; pair < pairs; ++pair) {
    __m512bh columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      columns[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + pair * pair_stride + v * 2 * kLanes));
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      std::int32_t two;
      std::memcpy(&two, rows + m * stride + 2 * pair, sizeof two);
      const __m512bh both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], both, columns[v]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + m * out_stride + v * kLanes, acc[m][v]);
}

// The same for any number of rows.
template <int V, bool Add>
void multiply_rows(long num_rows, const bf16* rows, long stride, const bf16* panel, long pair_stride, long pairs,
                   float* out, long out_stride) {
  long row = 0;
  for (; row + 6 <= num_rows; row += 6)
    multiply<6, V, Add>(rows + row * stride, stride, panel, pair_stride, pairs, out + row * out_stride, out_stride);
  for (; row < num_rows; ++row)
    multiply<1, V, Add>(rows + row * stride, stride, panel, pair_stride, pairs, out + row * out_stride, out_stride);
}

// Turns each pair (i, i + size / 2) by the patch's angles. Computed in float32, rounded once.
void rotate(const Attention& op, const bf16* from, long patch, bf16* to) {
  const long half = op.pairs();
  const float *cos = op.cos + patch * half, *sin = op.sin + patch * half;
  for (long i = 0; i < half; i += kLanes) {
    const Lanes lanes = first_lanes(half - i);
    const __m512 a = load(from + i, lanes), b = load(from + half + i, lanes);
    const __m512 c = _mm512_maskz_loadu_ps(lanes, cos + i), s = _mm512_maskz_loadu_ps(lanes, sin + i);
    store(to + i, fmsub(a, c, mul(b, s)), lanes);
    store(to + half + i, fmadd(b, c, mul(a, s)), lanes);
  }
}

// Packs the keys as [tiles][pairs][64][2]. Keys past the end are zeros.
void pack_keys(const Attention& op, const Unit& unit, Buffers& buf) {
  std::vector<std::int32_t> rotated(op.pairs());
  for (long i = 0; i < unit.num_tiles() * kPanel; ++i) {
    if (i < unit.length)
      rotate(op, op.row(unit.first + i, 1, unit.head), unit.first + i, reinterpret_cast<bf16*>(rotated.data()));
    else
      std::fill(rotated.begin(), rotated.end(), 0);
    auto* to = reinterpret_cast<std::int32_t*>(buf.keys.data()) + i / kPanel * op.pairs() * kPanel + i % kPanel;
    for (long pair = 0; pair < op.pairs(); ++pair) to[pair * kPanel] = rotated[pair];
  }
}

// Packs the values as [pairs of keys][size, rounded up][2]. Values past the end are zeros.
void pack_values(const Attention& op, const Unit& unit, Buffers& buf) {
  auto* to = reinterpret_cast<std::int32_t*>(buf.values.data());
  for (long i = 0; i < unit.num_tiles() * kPanel; i += 2)
    for (long element = 0; element < op.vectors() * kLanes; element += kLanes, to += kLanes) {
      const Lanes lanes = first_lanes(op.size - element);
      __m512i words[2];
      for (long j = 0; j < 2; ++j) {
        const Lanes there = i + j < unit.length ? lanes : 0;
        const bf16* row = op.row(unit.first + std::min(i + j, unit.length - 1), 2, unit.head) + element;
        words[j] = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, row));
      }
      _mm512_storeu_si512(to, _mm512_or_si512(words[0], _mm512_slli_epi32(words[1], 16)));
    }
}

// Turns the scores of one row into weights and rescales its earlier sums. Keys past the end get weight 0.
void update_softmax(const Attention& op, long row, const Lanes* there, float scale, Buffers& buf) {
  const float* scores = buf.scores.data() + row * kPanel;
  __m512 s[4], top = splat(kLowest);
  for (int v = 0; v < 4; ++v) {
    s[v] = _mm512_loadu_ps(scores + v * kLanes);
    top = _mm512_mask_max_ps(top, there[v], top, s[v]);
  }
  const float most = std::max(buf.largest[row], largest(top) * scale);
  __m512 total = splat(0.0f);
  for (int v = 0; v < 4; ++v) {
    const __m512 power = fmsub(s[v], splat(scale), splat(most));
    const __m512 weights = _mm512_maskz_mov_ps(there[v], exp2(power));
    store(buf.weights.data() + row * kPanel + v * kLanes, weights);
    total = add(total, weights);
  }
  const float added = sum(total);
  if (buf.largest[row] == most) {
    buf.total[row] += added;
    return;
  }
  const __m512 shrink = exp2(splat(buf.largest[row] - most));
  buf.total[row] = buf.total[row] * first(shrink) + added;
  buf.largest[row] = most;
  float* sums = buf.sums.data() + row * op.vectors() * kLanes;
  for (long v = 0; v < op.vectors(); ++v)
    _mm512_storeu_ps(sums + v * kLanes, mul(_mm512_loadu_ps(sums + v * kLanes), shrink));
}

// Adds the weighted values of a tile to the sums, up to 64 elements at a time.
void add_values(const Attention& op, long num_rows, const bf16* panel, Buffers& buf) {
  const long width = op.vectors() * kLanes;
  for (long begin = 0; begin < op.vectors(); begin += 4) {
    const auto add = [&](auto multiply_some) {
      multiply_some(num_rows, buf.weights.data(), kPanel, panel + 2 * begin * kLanes, 2 * width, kPanel / 2,
                    buf.sums.data() + begin * kLanes, width);
    };
    switch (op.vectors() - begin) {
      case 1: add(multiply_rows<1, true>); break;
      case 2: add(multiply_rows<2, true>); break;
      case 3: add(multiply_rows<3, true>); break;
      default: add(multiply_rows<4, true>);
    }
  }
}

// Computes `num_rows` queries from `begin` on, with packed keys and values.
void attend(const Attention& op, const Unit& unit, long begin, long num_rows, Buffers& buf) {
  const float scale = kLog2E / std::sqrt(static_cast<float>(op.size));
  const long width = op.vectors() * kLanes;
  for (long row = 0; row < num_rows; ++row) {
    const long patch = unit.first + begin + row;
    rotate(op, op.row(patch, 0, unit.head), patch, buf.queries.data() + row * op.size);
  }
  std::fill(buf.sums.begin(), buf.sums.end(), 0.0f);
  std::fill(buf.total.begin(), buf.total.end(), 0.0f);
  std::fill(buf.largest.begin(), buf.largest.end(), kLowest);
  for (long tile = 0; tile < unit.num_tiles(); ++tile) {
    multiply_rows<4, false>(num_rows, buf.queries.data(), op.size, buf.keys.data() + tile * op.pairs() * kPairStride,
                            kPairStride, op.pairs(), buf.scores.data(), kPanel);
    Lanes there[4];
    for (long v = 0; v < 4; ++v) there[v] = first_lanes(std::max(0L, unit.length - tile * kPanel - v * kLanes));
    for (long row = 0; row < num_rows; ++row) update_softmax(op, row, there, scale, buf);
    add_values(op, num_rows, buf.values.data() + tile * kPanel * width, buf);
  }
  for (long row = 0; row < num_rows; ++row) {
    bf16* out = op.out + ((unit.first + begin + row) * op.heads + unit.head) * op.size;
    const Floats share = splat(1.0f / buf.total[row]);
    for (long element = 0; element < op.size; element += kLanes)
      store(out + element, mul(_mm512_loadu_ps(buf.sums.data() + row * width + element), share),
            first_lanes(op.size - element));
  }
}

}  // namespace

extern "C" void ENTRY(image_attention)(const bf16* qkv, const float* cos, const float* sin, const std::int64_t* lengths,
                                       bf16* out, long num_images, long heads, long size, int num_threads) {
  const Attention op{qkv, cos, sin, out, heads, size};
  std::vector<Unit> units;
  long first = 0, longest = 0;
  for (long image = 0; image < num_images; first += lengths[image++]) {
    longest = std::max(longest, static_cast<long>(lengths[image]));
    for (long head = 0; head < heads; ++head) units.push_back({first, static_cast<long>(lengths[image]), head});
  }
  std::atomic<std::size_t> next{0};  // images differ in size, so an idle thread takes the next unit
  Pool::shared().run(num_threads, [&](long, long) {
    Buffers buf(op, longest);
    for (std::size_t index = next++; index < units.size(); index = next++) {
      const Unit& unit = units[index];
      pack_keys(op, unit, buf);
      pack_values(op, unit, buf);
      for (long begin = 0; begin < unit.length; begin += kRows)
        attend(op, unit, begin, std::min(kRows, unit.length - begin), buf);
    }
  });
}
