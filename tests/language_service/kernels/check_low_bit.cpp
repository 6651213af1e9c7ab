// Compares products with weights of 8 and 4 bits with slow sums. Sums of integers must be equal to the bit.

#include "check.h"
#include "low_bit.h"

namespace {

using tandem::LowBit;
using Bytes = std::vector<std::uint8_t>;

constexpr long kMostRows = 300;

// A weight as numbers: values and zeros from -8 to 7, or values from -128 to 127 and no zeros.
struct Weight {
  long scheme, width, num_columns, group;
  bool has_zeros;
  std::vector<int> values, zeros;  // [num_columns][width], [num_columns][width / group]
  std::vector<float> scales;       // as zeros

  Weight(long scheme, long width, long num_columns, long group, bool has_zeros)
      : scheme(scheme), width(width), num_columns(num_columns), group(group), has_zeros(has_zeros) {
    const int most = scheme == tandem::kW8A8 ? 127 : 7;
    std::uniform_int_distribution<int> value(-most - 1, most);
    std::uniform_real_distribution<float> scale(0.01f, 1.0f);
    for (long i = 0; i < num_columns * width; ++i) values.push_back(value(generator));
    for (long i = 0; i < num_columns * groups(); ++i) {
      zeros.push_back(has_zeros ? value(generator) : 0);
      scales.push_back(scale(generator));
    }
  }

  long groups() const { return width / group; }
  int value(long n, long k) const { return n < num_columns && k < width ? values[n * width + k] : 0; }
  int nibble(long n, long k) const { return value(n, k) + 8; }
  float scale(long n, long index) const { return n < num_columns ? scales[n * groups() + index] : 0; }
  int zero(long n, long index) const { return n < num_columns ? zeros[n * groups() + index] : 0; }
};

template <class Number>
void append(Bytes& bytes, Number number) {
  const auto* from = reinterpret_cast<const std::uint8_t*>(&number);
  bytes.insert(bytes.end(), from, from + sizeof number);
}

void pack_bytes(const Weight& weight, long column, Bytes& to) {
  const long padded = (weight.width + 3) / 4 * 4;
  for (long k = 0; k < padded; k += 4)
    for (long n = column; n < column + 64; ++n)
      for (long i = 0; i < 4; ++i) append(to, static_cast<std::int8_t>(weight.value(n, k + i)));
  for (long n = column; n < column + 64; ++n) append(to, weight.scale(n, 0));
  for (long n = column; n < column + 64; ++n) {
    std::int32_t sum = 0;
    for (long k = 0; k < weight.width; ++k) sum += weight.value(n, k);
    append(to, sum);
  }
}

void pack_group(const Weight& weight, long column, long index, Bytes& to) {
  const long first = index * weight.group, end = first + weight.group;
  if (weight.scheme == tandem::kW4A16)
    for (long k = first; k < end; k += 2)
      for (long i = 0; i < 32; ++i) {
        std::uint16_t word = 0;
        for (long j = 0; j < 4; ++j) word |= weight.nibble(column + 16 * j + i / 2, k + i % 2) << 4 * j;
        append(to, word);
      }
  else
    for (long k = first; k < end; k += 4)
      for (long i = 0; i < 128; ++i) {
        const long n = column + i / 64 * 32 + i % 64 / 4;
        append(to, static_cast<std::uint8_t>(weight.nibble(n, k + i % 4) | weight.nibble(n + 16, k + i % 4) << 4));
      }
  for (long n = column; n < column + 64; ++n) append(to, weight.scale(n, index));
  for (long n = column; n < column + 64 && weight.has_zeros; ++n)
    append(to, static_cast<std::int8_t>(weight.zero(n, index)));
}

Bytes pack(const Weight& weight) {
  Bytes bytes;
  for (long column = 0; column < weight.num_columns; column += 64)
    if (weight.scheme == tandem::kW8A8)
      pack_bytes(weight, column, bytes);
    else
      for (long index = 0; index < weight.groups(); ++index) pack_group(weight, column, index, bytes);
  return bytes;
}

// Rounds a row to 8 bits and returns its scale.
float round_row(const bf16* x, long width, std::vector<int>& to) {
  float largest = 0;
  for (long k = 0; k < width; ++k) largest = std::max(largest, std::abs(static_cast<float>(wide(x[k]))));
  const float scale = largest / 127;
  to.resize(width);
  for (long k = 0; k < width; ++k) to[k] = static_cast<int>(std::nearbyint(static_cast<float>(wide(x[k])) / scale));
  return scale;
}

float product_of_integers(const Weight& weight, const std::vector<int>& row, float scale, long n) {
  float sum = 0;
  for (long index = 0; index < weight.groups(); ++index) {
    long group_sum = 0;
    for (long k = index * weight.group; k < (index + 1) * weight.group; ++k)
      group_sum += row[k] * (weight.value(n, k) - weight.zero(n, index));
    sum += static_cast<float>(group_sum) * weight.scale(n, index);
  }
  return sum * scale;
}

void expect_product(const Weight& weight, const bf16* x, const float* found) {
  std::vector<int> row;
  const float scale = round_row(x, weight.width, row);
  for (long n = 0; n < weight.num_columns; ++n) {
    if (weight.scheme != tandem::kW4A16) {
      const float expected = product_of_integers(weight, row, scale, n);
      expect(found[n] == expected, weight.scheme == tandem::kW8A8 ? "w8a8" : "w4a8", found[n], expected);
      continue;
    }
    double sum = 0, size = 0;
    for (long k = 0; k < weight.width; ++k) {
      const long index = k / weight.group;
      const double factor = wide(x[k]) * weight.scale(n, index);
      sum += factor * (weight.value(n, k) - weight.zero(n, index));
      size += std::abs(factor) * 16;
    }
    expect(std::abs(found[n] - sum) <= size * static_cast<double>(weight.width) * 1.2e-7, "w4a16", found[n], sum);
  }
}

void check_weight(const Weight& weight, int num_threads) {
  const Bytes panels = pack(weight);
  const LowBit packed{panels.data(), nullptr,          weight.scheme, weight.group,
                      4,             weight.has_zeros, weight.width,  weight.num_columns};
  const Matrix x = random(kMostRows * weight.width);
  std::vector<float> together;
  for (const long num_rows : {300, 1, 2, 3, 7, 17, 33, 48, 65, 200}) {
    std::vector<float> out(num_rows * weight.num_columns);
    ENTRY(low_bit)(&packed, x.data(), nullptr, out.data(), num_rows, true, num_threads);
    if (num_rows == kMostRows) together = out;
    expect(std::equal(out.begin(), out.end(), together.begin()), "low_bit in another batch", num_rows, kMostRows);
  }
  for (long row = 0; row < kMostRows; row += 23)
    expect_product(weight, x.data() + row * weight.width, together.data() + row * weight.num_columns);
}

}  // namespace

void check_low_bit(int num_threads) {
  for (const long width : {6, 192, 1090, 1216})  // whole tiles or not, in one piece or two
    check_weight({tandem::kW8A8, width, 70, width, false}, num_threads);
  for (const long scheme : {tandem::kW4A16, tandem::kW4A8})
    for (const long group : {32, 64, 128})
      for (const bool has_zeros : {false, true})
        for (const long groups : {3, 4}) check_weight({scheme, groups * group, 70, group, has_zeros}, num_threads);
}
