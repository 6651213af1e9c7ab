// Operations on single rows: normalise, rotate heads by their positions, gate, add, find the largest element.

#include <cmath>
#include <cstdint>
#include <limits>

#include "bf16.h"
#include "kernels.h"
#include "pool.h"

namespace {

using namespace tandem;

// With few rows, starting the threads takes longer than the work.
int threads_for(long num_rows, int num_threads) { return num_rows < 4 ? 1 : num_threads; }

// Returns 1 / root mean square of `width` elements.
__m512 inverse_rms(const bf16* x, long width, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (long i = 0; i < width; i += kLanes) {
    const __m512 part = load(x + i, first_lanes(width - i));
    squares = _mm512_fmadd_ps(part, part, squares);
  }
  return _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / static_cast<float>(width) + eps));
}

// Normalises one head in place if there is a weight, then rotates each pair (i, i + size / 2).
void rotate(bf16* head, long size, const bf16* weight, float eps, const float* cosines, const float* sines) {
  const long half = size / 2;
  const __m512 scale = weight ? inverse_rms(head, size, eps) : _mm512_set1_ps(1.0f);
  for (long i = 0; i < half; i += kLanes) {
    __m512 first = _mm512_mul_ps(load(head + i), scale), second = _mm512_mul_ps(load(head + half + i), scale);
    if (weight) {
      first = _mm512_mul_ps(first, load(weight + i));
      second = _mm512_mul_ps(second, load(weight + half + i));
    }
    const __m512 cosine = _mm512_loadu_ps(cosines + i), sine = _mm512_loadu_ps(sines + i);
    store(head + i, _mm512_fmsub_ps(first, cosine, _mm512_mul_ps(second, sine)));
    store(head + half + i, _mm512_fmadd_ps(second, cosine, _mm512_mul_ps(first, sine)));
  }
}

__m512 silu(__m512 x) {
  const __m512 power = exp2(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

}  // namespace

// Computes out[rows][width] = x / rms(x) * weight.
extern "C" void tandem_rms_norm(const bf16* x, const bf16* weight, bf16* out, long num_rows, long width, float eps,
                                int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    const bf16* from = x + row * width;
    const __m512 scale = inverse_rms(from, width, eps);
    for (long i = 0; i < width; i += kLanes) {
      const __mmask16 lanes = first_lanes(width - i);
      const __m512 scaled = _mm512_mul_ps(load(from + i, lanes), scale);
      store(out + row * width + i, _mm512_mul_ps(scaled, load(weight + i, lanes)), lanes);
    }
  });
}

// Normalises and rotates x[rows][heads][size] in place. Rows are `stride` elements apart, angles are [rows][size / 2].
// Without a weight, the heads are only rotated.
extern "C" void tandem_rotate_heads(bf16* x, const bf16* weight, const float* cosines, const float* sines,
                                    long num_rows, long stride, long heads, long size, float eps, int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    for (long head = 0; head < heads; ++head)
      rotate(x + row * stride + head * size, size, weight, eps, cosines + row * (size / 2), sines + row * (size / 2));
  });
}

// Computes out[rows][width] = silu(gate) * up. A row of x[rows][2 width] is gate, then up.
extern "C" void tandem_swiglu(const bf16* x, bf16* out, long num_rows, long width, int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    const bf16 *gate = x + row * 2 * width, *up = gate + width;
    for (long i = 0; i < width; i += kLanes) {
      const __mmask16 lanes = first_lanes(width - i);
      store(out + row * width + i, _mm512_mul_ps(silu(load(gate + i, lanes)), load(up + i, lanes)), lanes);
    }
  });
}

// Adds the rows of y, `stride` elements apart, to x[rows][width] in place. Sums are rounded once.
extern "C" void tandem_add_rows(bf16* x, const bf16* y, long num_rows, long stride, long width, int num_threads) {
  split_evenly(threads_for(num_rows, num_threads), num_rows, [=](long row) {
    bf16* to = x + row * width;
    for (long i = 0; i < width; i += kLanes) {
      const __mmask16 lanes = first_lanes(width - i);
      store(to + i, _mm512_add_ps(load(to + i, lanes), load(y + row * stride + i, lanes)), lanes);
    }
  });
}

// Finds the largest element of each row of x[rows][width] and its first index. A row with a NaN gives NaN and index 0.
extern "C" void tandem_largest(const float* x, float* values, std::int64_t* indices, long num_rows, long width,
                               int num_threads) {
  split_evenly(num_threads, num_rows, [=](long row) {
    const float* from = x + row * width;
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512 top = lowest;
    __mmask16 bad = 0;
    for (long i = 0; i < width; i += kLanes) {
      const __m512 part = _mm512_mask_loadu_ps(lowest, first_lanes(width - i), from + i);
      bad |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
      top = _mm512_max_ps(top, part);
    }
    values[row] = bad ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(top);
    indices[row] = 0;
    for (long i = 0; i < width && !bad; i += kLanes) {
      const __mmask16 lanes = first_lanes(width - i);
      const __mmask16 found = _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, from + i),
                                                      _mm512_set1_ps(values[row]), _CMP_EQ_OQ);
      if (found) {
        indices[row] = i + __builtin_ctz(found);
        return;
      }
    }
  });
}
