// The vocabulary of vec.h for registers of fewer than 16 lanes, over operations on one register.
#pragma once

#include <cstring>

namespace tandem::inline TANDEM_SET {

constexpr int kParts = kLanes / kRegLanes;

struct Floats {
  Reg part[kParts];
};

// The first `count` of 16 lanes.
struct Lanes {
  long count;
};

inline Lanes first_lanes(long count) { return {count < kLanes ? count : kLanes}; }

template <class Make>
inline Floats each_part(const Make& make) {
  Floats made;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) made.part[i] = make(i);
  return made;
}

inline Floats splat(float value) {
  return each_part([=](int) { return splat_reg(value); });
}
inline Floats add(Floats a, Floats b) {
  return each_part([&](int i) { return add(a.part[i], b.part[i]); });
}
inline Floats sub(Floats a, Floats b) {
  return each_part([&](int i) { return sub(a.part[i], b.part[i]); });
}
inline Floats mul(Floats a, Floats b) {
  return each_part([&](int i) { return mul(a.part[i], b.part[i]); });
}
inline Floats div(Floats a, Floats b) {
  return each_part([&](int i) { return div(a.part[i], b.part[i]); });
}
inline Floats max(Floats a, Floats b) {
  return each_part([&](int i) { return max(a.part[i], b.part[i]); });
}
inline Floats fmadd(Floats a, Floats b, Floats c) {
  return each_part([&](int i) { return fmadd(a.part[i], b.part[i], c.part[i]); });
}
inline Floats fmsub(Floats a, Floats b, Floats c) {
  return each_part([&](int i) { return fmsub(a.part[i], b.part[i], c.part[i]); });
}
inline Floats select(Lanes lanes, Floats yes, Floats no) {
  return each_part([&](int i) { return select_first(lanes.count - i * kRegLanes, yes.part[i], no.part[i]); });
}
inline Floats limit_exponent(Floats x) {
  return each_part([&](int i) { return limit_exponent(x.part[i]); });
}
inline Floats round_to_even(Floats x) {
  return each_part([&](int i) { return round_to_even(x.part[i]); });
}
inline Floats scale_by_power(Floats x, Floats exponent) {
  return each_part([&](int i) { return scale_by_power(x.part[i], exponent.part[i]); });
}

inline float sum(Floats x) {
  Reg total = x.part[0];
  for (int i = 1; i < kParts; ++i) total = add(total, x.part[i]);
  return sum(total);
}
inline float largest(Floats x) {
  Reg top = x.part[0];
  for (int i = 1; i < kParts; ++i) top = max(top, x.part[i]);
  return largest(top);
}
inline float first(Floats x) { return first(x.part[0]); }
inline std::uint32_t equal_lanes(Floats a, Floats b) {
  std::uint32_t found = 0;
  for (int i = 0; i < kParts; ++i) found |= equal_lanes(a.part[i], b.part[i]) << (i * kRegLanes);
  return found;
}

inline Floats load(const float* from) {
  return each_part([=](int i) { return load_reg(from + i * kRegLanes); });
}
inline Floats load(const bf16* from) {
  return each_part([=](int i) { return load_reg(from + i * kRegLanes); });
}
inline void store(float* to, Floats values) {
  for (int i = 0; i < kParts; ++i) store_reg(to + i * kRegLanes, values.part[i]);
}
inline void store(bf16* to, Floats values) {
  for (int i = 0; i < kParts; ++i) store_reg(to + i * kRegLanes, values.part[i]);
}

template <class Element>
inline Floats load(const Element* from, Lanes lanes) {
  if (lanes.count == kLanes) return load(from);
  Element some[kLanes] = {};
  if (lanes.count > 0) std::memcpy(some, from, lanes.count * sizeof(Element));
  return load(some);
}
template <class Element>
inline void store(Element* to, Floats values, Lanes lanes) {
  if (lanes.count == kLanes) return store(to, values);
  Element some[kLanes];
  store(some, values);
  if (lanes.count > 0) std::memcpy(to, some, lanes.count * sizeof(Element));
}

}  // namespace tandem::inline TANDEM_SET
