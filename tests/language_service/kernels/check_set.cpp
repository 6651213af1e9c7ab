// Compares the kernels of one instruction set with slow sums in double, where no Python can run: on emulated processors.
// Prints the sets that the processor can run, then a line for each operation. Exits with 1 after a difference.

#include "check.h"

extern "C" int tandem_can_run(const char* set);

bool failed = false;

namespace {

constexpr double kRounding = 1.0 / 256;  // relative error of a bfloat16

void expect_near(const char* name, double found, double expected, double scale) {
  expect(std::abs(found - expected) <= kRounding * std::abs(expected) + 1e-4 * scale, name, found, expected);
}

// [ceil(N / 64)][K / 2][64][2]
Matrix pack(const Matrix& weight, long width, long num_columns) {
  Matrix panels((num_columns + 63) / 64 * 64 * width);
  for (long n = 0; n < num_columns; ++n)
    for (long k = 0; k < width; ++k)
      panels[((n / 64 * (width / 2) + k / 2) * 64 + n % 64) * 2 + k % 2] = weight[n * width + k];
  return panels;
}

void check_linear(long width, long num_columns, int num_threads) {
  constexpr long kMostRows = 300;
  const Matrix x = random(kMostRows * width), weight = random(num_columns * width), bias = random(num_columns);
  const Matrix residual = random(kMostRows * num_columns), panels = pack(weight, width, num_columns);
  Matrix together(kMostRows * num_columns);
  for (const long num_rows : {300, 1, 2, 3, 7, 17, 33, 48, 65, 200}) {
    Matrix out(num_rows * num_columns);
    ENTRY(linear)(x.data(), panels.data(), bias.data(), residual.data(), out.data(), num_rows, width, num_columns, false,
                  num_threads);
    if (num_rows == kMostRows) together = out;
    expect(std::equal(out.begin(), out.end(), together.begin()), "linear in another batch", num_rows, kMostRows);
  }
  for (long row = 0; row < kMostRows; row += 7)
    for (long n = 0; n < num_columns; ++n) {
      double sum = wide(bias[n]) + wide(residual[row * num_columns + n]);
      for (long k = 0; k < width; ++k) sum += wide(x[row * width + k]) * wide(weight[n * width + k]);
      expect_near("linear", wide(together[row * num_columns + n]), sum, std::sqrt(width) * 3);
    }
}

void check_rows() {
  constexpr long kRows = 9, kWidth = 70;
  const Matrix x = random(kRows * kWidth), weight = random(kWidth);
  Matrix out(kRows * kWidth);
  ENTRY(rms_norm)(x.data(), weight.data(), out.data(), kRows, kWidth, 1e-6f, 2);
  Matrix gated(kRows * kWidth / 2);
  ENTRY(swiglu)(x.data(), gated.data(), kRows, kWidth / 2, 2);
  for (long row = 0; row < kRows; ++row) {
    const bf16* from = x.data() + row * kWidth;
    double squares = 0;
    for (long i = 0; i < kWidth; ++i) squares += wide(from[i]) * wide(from[i]);
    for (long i = 0; i < kWidth; ++i)
      expect_near("rms_norm", wide(out[row * kWidth + i]),
                  wide(from[i]) / std::sqrt(squares / kWidth + 1e-6) * wide(weight[i]), 3);
    for (long i = 0; i < kWidth / 2; ++i)
      expect_near("swiglu", wide(gated[row * kWidth / 2 + i]),
                  wide(from[i]) / (1 + std::exp(-wide(from[i]))) * wide(from[kWidth / 2 + i]), 3);
  }
  float logits[37], most;
  std::int64_t index;
  for (int i = 0; i < 37; ++i) logits[i] = static_cast<float>(i * 7 % 36);
  ENTRY(largest)(logits, &most, &index, 1, 37, 2);
  expect(index == std::max_element(logits, logits + 37) - logits, "largest", static_cast<double>(index), most);
  logits[36] = std::nanf("");
  ENTRY(largest)(logits, &most, &index, 1, 37, 2);
  expect(std::isnan(most) && index == 0, "largest of NaN", most, 0);
}

void check_rotation() {
  constexpr long kRows = 9, kHeads = 3, kSize = 96;
  Matrix x = random(kRows * kHeads * kSize);
  const Matrix before = x, weight = random(kSize);
  std::vector<float> cosines(kRows * kSize / 2), sines(kRows * kSize / 2);
  for (std::size_t i = 0; i < cosines.size(); ++i) cosines[i] = std::cos(i * 0.1f), sines[i] = std::sin(i * 0.1f);
  ENTRY(rotate_heads)(x.data(), weight.data(), cosines.data(), sines.data(), kRows, kHeads * kSize, kHeads, kSize, 1e-6f, 2);
  for (long head = 0; head < kRows * kHeads; ++head) {
    const bf16* from = before.data() + head * kSize;
    double squares = 0;
    for (long i = 0; i < kSize; ++i) squares += wide(from[i]) * wide(from[i]);
    const double scale = 1 / std::sqrt(squares / kSize + 1e-6);
    for (long i = 0; i < kSize / 2; ++i) {
      const double a = wide(from[i]) * wide(weight[i]) * scale;
      const double b = wide(from[kSize / 2 + i]) * wide(weight[kSize / 2 + i]) * scale;
      const double c = cosines[head / kHeads * kSize / 2 + i], s = sines[head / kHeads * kSize / 2 + i];
      expect_near("rotate_heads", wide(x[head * kSize + i]), a * c - b * s, 6);
      expect_near("rotate_heads", wide(x[head * kSize + kSize / 2 + i]), b * c + a * s, 6);
    }
  }
}

// Attention of two sequences: one continues by `num_new` tokens, one decodes.
void check_attention(long heads, long kv_heads, long size, long num_new) {
  constexpr long kBlock = 16, kBlocks = 32;
  const long starts[] = {130, 65}, lengths[] = {num_new, 1}, width = (heads + 2 * kv_heads) * size;
  const std::int32_t spans[] = {0, 130, static_cast<std::int32_t>(num_new), 0,
                                static_cast<std::int32_t>(num_new), 65, 1, 20};
  std::int32_t tables[kBlocks];
  for (int i = 0; i < kBlocks; ++i) tables[i] = (i * 5 + 3) % kBlocks;
  const Matrix qkv = random((num_new + 1) * width);
  Matrix keys = random(kBlocks * kBlock * kv_heads * size), values = random(kBlocks * kBlock * kv_heads * size);
  Matrix out((num_new + 1) * heads * size);
  ENTRY(attention)(qkv.data(), qkv.data() + heads * size, qkv.data() + (heads + kv_heads) * size, keys.data(),
                   values.data(), spans, tables, out.data(), width, 2, heads, kv_heads, size, kBlock, 2);
  for (long span = 0, row = 0; span < 2; ++span)
    for (long i = 0; i < lengths[span]; ++i, ++row)
      for (long head = 0; head < heads; ++head) {
        const long seen = starts[span] + i + 1;
        const auto slot = [&](long position) {
          const long block = tables[spans[4 * span + 3] + position / kBlock];
          return ((block * kBlock + position % kBlock) * kv_heads + head / (heads / kv_heads)) * size;
        };
        std::vector<double> weights(seen);
        double most = -1e30, total = 0;
        for (long at = 0; at < seen; ++at) {
          for (long e = 0; e < size; ++e) weights[at] += wide(qkv[row * width + head * size + e]) * wide(keys[slot(at) + e]);
          most = std::max(most, weights[at] /= std::sqrt(size));
        }
        for (double& weight : weights) total += weight = std::exp(weight - most);
        for (long e = 0; e < size; ++e) {
          double sum = 0;
          for (long at = 0; at < seen; ++at) sum += weights[at] / total * wide(values[slot(at) + e]);
          const double found = wide(out[(row * heads + head) * size + e]);
          expect(std::abs(found - sum) <= 2e-2 * std::max(1.0, std::abs(sum)), "attention", found, sum);
        }
      }
}

}  // namespace

int main() {
  for (const char* set : {"amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neon"})
    if (tandem_can_run(set)) std::puts(set);
  for (const int num_threads : {1, 2}) {
    check_linear(32, 1, num_threads);
    check_linear(96, 130, num_threads);
    check_linear(1056, 65, num_threads);
  }
  std::puts("linear");
  check_rows();
  check_rotation();
  std::puts("rows");
  check_attention(4, 4, 32, 1);
  check_attention(6, 2, 96, 40);
  check_attention(5, 1, 128, 21);
  std::puts("attention");
  for (const int num_threads : {1, 2}) check_low_bit(num_threads);
  std::puts("low_bit");
  return failed;
}
