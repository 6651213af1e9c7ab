// Attention that reads the blocks of the paged cache in place: for decoding, chunked prefill, and any mix of them.
//
// A unit of work is some consecutive new tokens of one sequence, with all query heads of one or two key-value heads. So
// each key is read once per group. A unit goes through the context in tiles of 64 positions, and in each tile through
// its key-value heads, which are neighbours in memory. It packs the keys and values of a head into panels (panel.h) and
// updates the softmax tile by tile (Milakov and Gimelshein, 2018). Tiles start at multiples of 64. So the result of a
// token is the same, bit by bit, however its sequence was cut into chunks.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels.h"
#include "packing.h"
#include "pool.h"
#include "product.h"

namespace {

using namespace tandem;

constexpr long kMaxRows = 96;  // query rows per unit: tokens x heads, in whole tiles
constexpr long kHeads = 2;     // most key-value heads per unit. Four are no faster: they fill the second-level cache.
constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -1e30f;  // below every score, but finite, so that no difference is NaN

struct Attention {
  const bf16 *q, *k, *v;  // of the new tokens, [.., heads, size], rows `stride` elements apart
  bf16 *keys, *values;    // of the layer, [blocks][block_size][kv_heads][size]
  const std::int32_t* spans;   // [num_spans][4]: first row in the batch, start, length, index of its table
  const std::int32_t* tables;  // blocks of the sequences, end to end
  bf16* out;                   // [rows][heads][size]
  long stride, num_spans, heads, kv_heads, size, block_size;
};

struct Unit {
  long span, kv_head, num_kv_heads, first, num_tokens;
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

// Addresses of the keys and values of 64 positions. Positions past the end point to zeros.
struct Tile {
  const bf16 *keys[kPanel], *values[kPanel];
};

// Buffers of one thread. All but `zeros` are written before they are read.
struct Buffers {
  template <class Element>
  using Array = std::unique_ptr<Element[]>;

  explicit Buffers(long size)
      : queries(std::make_unique_for_overwrite<bf16[]>(kMaxRows * size)),
        weights(std::make_unique_for_overwrite<bf16[]>(kMaxRows * kPanel)),
        panel(std::make_unique_for_overwrite<bf16[]>(std::max(size, kPanel) * kPanel)),
        zeros(std::make_unique<bf16[]>(size)),
        scores(std::make_unique_for_overwrite<float[]>(kMaxRows * kPanel)),
        sums(std::make_unique_for_overwrite<float[]>(num_value_panels(size) * kMaxRows * kPanel)),
        largest(std::make_unique_for_overwrite<float[]>(kMaxRows)),
        total(std::make_unique_for_overwrite<float[]>(kMaxRows)) {}

  static long num_value_panels(long size) { return (size + kPanel - 1) / kPanel; }

  Array<bf16> queries, weights, panel, zeros;
  Array<float> scores, sums, largest, total;
  Tile tile, next_tile;
};

// Finds 64 positions from `first` on, of one key-value head of a unit. The context of a unit ends with its last token.
void find_tile(const Attention& op, const Unit& unit, long head, long first, const bf16* zeros, Tile& tile) {
  const Span span(op, unit.span);
  const long end = span.start + unit.first + unit.num_tokens;
  const std::int32_t* block = span.blocks + first / op.block_size;
  for (long i = 0, offset = first % op.block_size; i < kPanel; ++i) {
    const bool there = first + i < end;
    const long at = there ? ((*block * op.block_size + offset) * op.kv_heads + unit.kv_head + head) * op.size : 0;
    tile.keys[i] = there ? op.keys + at : zeros;
    tile.values[i] = there ? op.values + at : zeros;
    if (++offset == op.block_size) ++block, offset = 0;
  }
}

// Turns the scores of one row into weights and rescales its earlier sums. Invisible positions get weight 0.
void update_softmax(const Attention& op, long row, const Lanes* visible, float scale, Buffers& buf) {
  const float* scores = buf.scores.get() + row * kPanel;
  Floats s[4], top = splat(kLowest);
  for (int v = 0; v < 4; ++v) {
    s[v] = load(scores + v * kLanes);
    top = select(visible[v], max(top, s[v]), top);
  }
  const float most = std::max(buf.largest[row], largest(top) * scale);
  const float shrink = first(exp2(splat(buf.largest[row] - most)));
  Floats total = splat(0.0f);
  for (int v = 0; v < 4; ++v) {
    const Floats power = fmsub(s[v], splat(scale), splat(most));
    const Floats weights = select(visible[v], exp2(power), splat(0.0f));
    store(buf.weights.get() + row * kPanel + v * kLanes, weights);
    total = add(total, weights);
  }
  buf.total[row] = buf.total[row] * shrink + sum(total);
  if (buf.largest[row] == most) return;  // `shrink` is 1
  buf.largest[row] = most;
  for (long panel = 0; panel < Buffers::num_value_panels(op.size); ++panel) {
    float* sums = buf.sums.get() + (panel * kMaxRows + row) * kPanel;
    for (long v = 0; v < kPanel; v += kLanes) store(sums + v, mul(load(sums + v), splat(shrink)));
  }
}

// The query rows of one key-value head of a unit. They lie from `first_row` on in the buffers.
struct Part {
  long kv_head, first_row, num_rows;
};

// Updates all rows of a part. Each token sees the positions up to its own.
void update_softmax_rows(const Attention& op, const Part& part, long num_before, float scale, Buffers& buf) {
  const long group = op.heads / op.kv_heads;
  for (long row = 0; row < part.num_rows;) {
    const long num_seen = num_before + row / group + 1;
    Lanes visible[4];
    for (long v = 0; v < 4; ++v) visible[v] = first_lanes(std::max(0L, num_seen - v * kLanes));
    for (long head = 0; head < group; ++head, ++row) update_softmax(op, part.first_row + row, visible, scale, buf);
  }
}

// A row of a part: the index of its token in the batch, and its query head.
struct Query {
  long token, head;

  Query(const Attention& op, const Unit& unit, const Part& part, long row) {
    const long group = op.heads / op.kv_heads;
    token = Span(op, unit.span).row + unit.first + row / group;
    head = part.kv_head * group + row % group;
  }
};

void store_results(const Attention& op, const Unit& unit, const Part& part, const Buffers& buf) {
  for (long i = 0; i < part.num_rows; ++i) {
    const Query query(op, unit, part, i);
    const long row = part.first_row + i;
    const Floats share = splat(1.0f / buf.total[row]);
    for (long element = 0; element < op.size; element += kLanes) {
      const float* sums = buf.sums.get() + (element / kPanel * kMaxRows + row) * kPanel + element % kPanel;
      store(op.out + (query.token * op.heads + query.head) * op.size + element, mul(load(sums), share));
    }
  }
}

// Multiplies all queries of a part by the keys of a tile.
void score(const Attention& op, const Products& products, const Part& part, Buffers& buf) {
  bf16* const panel = buf.panel.get();
  for (long element = 0; element < op.size; element += 2 * kLanes)
    for (long i = 0; i < kPanel; i += kLanes)
      pack_keys(buf.tile.keys + i, buf.next_tile.keys + i, element, panel + element / 2 * kPairStride + 2 * i);
  const Rows queries(buf.queries.get() + part.first_row * op.size, op.size, part.num_rows);
  float* const scores = buf.scores.get() + part.first_row * kPanel;
  std::fill_n(scores, products.padded(part.num_rows) * kPanel, 0.0f);
  multiply(queries, part.num_rows, panel, op.size / 2, scores);
}

// Adds the weighted values of a tile to the sums of a part.
void add_values(const Attention& op, const Part& part, Buffers& buf) {
  bf16* const panel = buf.panel.get();
  const Rows weights(buf.weights.get() + part.first_row * kPanel, kPanel, part.num_rows);
  for (long begin = 0; begin < op.size; begin += kPanel) {
    for (long i = 0; i < kPanel; i += 2)
      for (long element = begin; element < std::min(begin + kPanel, op.size); element += 2 * kLanes)
        pack_values(buf.tile.values + i, buf.next_tile.values + i, element, panel + i * kPanel + 2 * (element - begin));
    multiply(weights, part.num_rows, panel, kPanel / 2, buf.sums.get() + begin * kMaxRows + part.first_row * kPanel);
  }
}

// Copies the queries of a part and resets its sums.
void start(const Attention& op, const Unit& unit, const Part& part, const Products& products, Buffers& buf) {
  for (long i = 0; i < part.num_rows; ++i) {
    const Query query(op, unit, part, i);
    const bf16* const from = op.q + query.token * op.stride + query.head * op.size;
    std::memcpy(buf.queries.get() + (part.first_row + i) * op.size, from, op.size * sizeof(bf16));
  }
  const long num_sums = products.padded(part.num_rows) * kPanel;
  for (long element = 0; element < op.size; element += kPanel)
    std::fill_n(buf.sums.get() + element * kMaxRows + part.first_row * kPanel, num_sums, 0.0f);
  std::fill_n(buf.total.get() + part.first_row, part.num_rows, 0.0f);
  std::fill_n(buf.largest.get() + part.first_row, part.num_rows, kLowest);
}

// Computes one unit. `buf.next_tile` is its first tile, and at the end the first tile of the following unit.
void attend(const Attention& op, const Unit& unit, const Unit* following, Buffers& buf) {
  const long num_rows = unit.num_tokens * (op.heads / op.kv_heads);
  const long position = Span(op, unit.span).start + unit.first, end = position + unit.num_tokens;
  const float scale = kLog2E / std::sqrt(static_cast<float>(op.size));
  const Products products(num_rows);
  const auto part = [&](long head) { return Part{unit.kv_head + head, head * products.padded(num_rows), num_rows}; };
  for (long head = 0; head < unit.num_kv_heads; ++head) start(op, unit, part(head), products, buf);
  for (long first = 0; first < end; first += kPanel)
    for (long head = 0; head < unit.num_kv_heads; ++head) {
      buf.tile = buf.next_tile;
      if (head + 1 < unit.num_kv_heads)
        find_tile(op, unit, head + 1, first, buf.zeros.get(), buf.next_tile);
      else if (first + kPanel < end)
        find_tile(op, unit, 0, first + kPanel, buf.zeros.get(), buf.next_tile);
      else if (following)
        find_tile(op, *following, 0, 0, buf.zeros.get(), buf.next_tile);
      score(op, products, part(head), buf);
      update_softmax_rows(op, part(head), position - first, scale, buf);
      add_values(op, part(head), buf);
    }
  for (long head = 0; head < unit.num_kv_heads; ++head) store_results(op, unit, part(head), buf);
}

// Returns how many key-value heads a unit has: one if some threads had no work otherwise, or if the rows do not fit.
long heads_of_unit(const Attention& op, long num_rows, int num_threads) {
  const long num_units = op.num_spans * ((op.kv_heads + kHeads - 1) / kHeads);
  const bool fits = kHeads * ((num_rows + 15) / 16 * 16) <= kMaxRows;  // 16: the rows of a tile of AMX
  return num_units < num_threads || !fits ? 1 : kHeads;
}

std::vector<Unit> units_of(const Attention& op, int num_threads) {
  std::vector<Unit> units;
  const long group = op.heads / op.kv_heads, step = std::max(1L, kMaxRows / group);
  for (long index = 0; index < op.num_spans; ++index) {
    const long length = Span(op, index).length;
    // The last tokens see the longest context. Starting with the longest units balances the threads best.
    for (long first = (length - 1) / step * step; first >= 0; first -= step) {
      const long num_tokens = std::min(step, length - first);
      const long num_heads = heads_of_unit(op, num_tokens * group, num_threads);
      for (long kv_head = 0; kv_head < op.kv_heads; kv_head += num_heads)
        units.push_back({index, kv_head, std::min(num_heads, op.kv_heads - kv_head), first, num_tokens});
    }
  }
  return units;
}

// Stores the keys and values of the new tokens, as far as they belong to this thread.
void store_new_tokens(const Attention& op, long thread, long threads) {
  const long width = op.kv_heads * op.size;
  for (long index = 0; index < op.num_spans; ++index) {
    const Span span(op, index);
    for (long i = 0; i < span.length; ++i) {
      if ((span.row + i) % threads != thread) continue;
      const long position = span.start + i, from = (span.row + i) * op.stride;
      const long slot = span.blocks[position / op.block_size] * op.block_size + position % op.block_size;
      std::memcpy(op.keys + slot * width, op.k + from, width * sizeof(bf16));
      std::memcpy(op.values + slot * width, op.v + from, width * sizeof(bf16));
    }
  }
}

}  // namespace

extern "C" void ENTRY(attention)(const bf16* q, const bf16* k, const bf16* v, bf16* keys, bf16* values,
                                 const std::int32_t* spans, const std::int32_t* tables, bf16* out, long stride,
                                 long num_spans, long heads, long kv_heads, long size, long block_size,
                                 int num_threads) {
  const Attention op{q, k, v, keys, values, spans, tables, out, stride, num_spans, heads, kv_heads, size, block_size};
  const std::vector<Unit> units = units_of(op, num_threads);
  const long num_units = static_cast<long>(units.size());
  Pool::shared().run(num_threads, [&op](long thread, long threads) { store_new_tokens(op, thread, threads); });
  std::atomic<long> next{0};  // units differ in length, so an idle thread takes the next one
  Pool::shared().run(num_threads, [&](long, long) {
    Buffers buf(size);
    long index = next++;
    if (index < num_units) find_tile(op, units[index], 0, 0, buf.zeros.get(), buf.next_tile);
    while (index < num_units) {
      const long following = next++;  // known early, so that its first tile is prefetched
      attend(op, units[index], following < num_units ? &units[following] : nullptr, buf);
      index = following;
    }
  });
}
