// Operations on single rows: normalise, rotate heads by their positions, gate, add, find the largest element.

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"
#include "pool.h"
#include "vec.h"

namespace {

using namespace tandem;

// With few rows, starting the threads takes longer than the work.
int threads_for(long num_rows, int num_threads) { return num_rows < 4 ? 1 : num_threads; }

constexpr std::uint32_t kAllLanes = 0xffff;

// Returns 1 / root mean square of `width` elements.
Floats inverse_rms(const bf16* x, long width, float eps) {
  Floats squares = splat(0.0f);
  for (long i = 0; i < width; i += kLanes) {
    const Floats part = load(x + i, first_lanes(width - i));
    squares = fmadd(part, part, squares);
  }
  return splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps));
}

// Normalises one head in place if there is a weight, then rotates each pair (i, i + size / 2).
void rotate(bf16* head, long size, const bf16* weight, float eps, const float* cosines, const float* sines) {
  const long half = size / 2;
  const Floats scale = weight ? inverse_rms(head, size, eps) : splat(1.0f);
  for (long i = 0; i < half; i += kLanes) {
    Floats first = mul(load(head + i), scale), second = mul(load(head + half + i), scale);
    if (weight) {
      first = mul(first, load(weight + i));
      second = mul(second, load(weight + half + i));
    }
    const Floats cosine = load(cosines + i), sine = load(sines + i);
    store(head + i, fmsub(first, cosine, mul(second, sine)));
    store(head + half + i, fmadd(second, cosine, mul(first, sine)));
  }
}

Floats silu(Floats x) {
  const Floats power = exp2(mul(x, splat(-1.44269504f)));
  return div(x, add(splat(1.0f), power));
}

}  // namespace

// Computes out[rows][width] = x / rms(x) * weight.
extern "C" void ENTRY(rms_norm)(const bf16* x, const bf16* weight, bf16* out, long num_rows, long width, float eps,
                                int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    const bf16* from = x + row * width;
    const Floats scale = inverse_rms(from, width, eps);
    for (long i = 0; i < width; i += kLanes) {
      const Lanes lanes = first_lanes(width - i);
      const Floats scaled = mul(load(from + i, lanes), scale);
      store(out + row * width + i, mul(scaled, load(weight + i, lanes)), lanes);
    }
  });
}

// Normalises and rotates x[rows][heads][size] in place. Rows are `stride` elements apart, angles are [rows][size / 2].
// Without a weight, the heads are only rotated.
extern "C" void ENTRY(rotate_heads)(bf16* x, const bf16* weight, const float* cosines, const float* sines,
                                    long num_rows, long stride, long heads, long size, float eps, int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    for (long head = 0; head < heads; ++head)
      rotate(x + row * stride + head * size, size, weight, eps, cosines + row * (size / 2), sines + row * (size / 2));
  });
}

// Computes out[rows][width] = silu(gate) * up. A row of x[rows][2 width] is gate, then up.
extern "C" void ENTRY(swiglu)(const bf16* x, bf16* out, long num_rows, long width, int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    const bf16 *gate = x + row * 2 * width, *up = gate + width;
    for (long i = 0; i < width; i += kLanes) {
      const Lanes lanes = first_lanes(width - i);
      store(out + row * width + i, mul(silu(load(gate + i, lanes)), load(up + i, lanes)), lanes);
    }
  });
}

// Adds the rows of y, `stride` elements apart, to x[rows][width] in place. Sums are rounded once.
extern "C" void ENTRY(add_rows)(bf16* x, const bf16* y, long num_rows, long stride, long width, int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    bf16* to = x + row * width;
    for (long i = 0; i < width; i += kLanes) {
      const Lanes lanes = first_lanes(width - i);
      store(to + i, add(load(to + i, lanes), load(y + row * stride + i, lanes)), lanes);
    }
  });
}

// Finds the largest element of each row of x[rows][width] and its first index. A row with a NaN gives NaN and index 0.
extern "C" void ENTRY(largest)(const float* x, float* values, std::int64_t* indices, long num_rows, long width,
                               int num_threads) {
  split_evenly(num_threads, num_rows, [=](long row) {
    const float* from = x + row * width;
    const Floats lowest = splat(-std::numeric_limits<float>::infinity());
    Floats top = lowest;
    bool has_nan = false;
    for (long i = 0; i < width; i += kLanes) {
      const Lanes lanes = first_lanes(width - i);
      const Floats part = select(lanes, load(from + i, lanes), lowest);
      has_nan |= equal_lanes(part, part) != kAllLanes;
      top = max(top, part);
    }
    values[row] = has_nan ? std::numeric_limits<float>::quiet_NaN() : largest(top);
    indices[row] = 0;
    for (long i = 0; i < width && !has_nan; i += kLanes) {
      const Lanes lanes = first_lanes(width - i);
      // Lanes past the end come after the one that is looked for.
      if (const std::uint32_t found = equal_lanes(load(from + i, lanes), splat(values[row]))) {
        indices[row] = i + __builtin_ctz(found);
        return;
      }
    }
  });
}
