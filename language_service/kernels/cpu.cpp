// Which instruction sets this processor and its system can run.
//
// Compiled for any processor.

#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

#if defined(__x86_64__)

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;  // zeros where the processor has no such leaf

  Leaf(unsigned number, unsigned part) { __get_cpuid_count(number, part, &a, &b, &c, &d); }
};

bool has(unsigned bits, std::initializer_list<int> wanted) {
  for (const int bit : wanted)
    if (!(bits >> bit & 1)) return false;
  return true;
}

// Returns which registers the system saves (XCR0).
unsigned saved_registers() {
  if (!has(Leaf(1, 0).c, {27})) return 0;  // no XGETBV
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Asks Linux for the tiles' registers, once a process.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool can_run(const char* set) {
  const Leaf features(7, 0);
  const unsigned saved = saved_registers();
  const bool avx2 = has(Leaf(1, 0).c, {12}) && has(features.b, {5}) && has(saved, {1, 2});
  const bool avx512 = avx2 && has(features.b, {16, 17, 30, 31}) && has(saved, {5, 6, 7});  // F, DQ, BW, VL
  const bool avx512bf16 = avx512 && has(Leaf(7, 1).a, {5}) && has(features.c, {11});       // and VNNI
  if (!std::strcmp(set, "avx2")) return avx2;
  if (!std::strcmp(set, "avx512")) return avx512;
  if (!std::strcmp(set, "avx512bf16")) return avx512bf16;
  if (std::strcmp(set, "amx")) return false;
  return avx512bf16 && has(features.d, {22, 24, 25}) && has(saved, {17, 18}) && may_use_tiles();  // BF16, tiles, INT8
}

#elif defined(__aarch64__)

bool can_run(const char* set) {
  if (!std::strcmp(set, "neon")) return true;  // part of every such processor
  if (std::strcmp(set, "neonbf16")) return false;
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1 << 20, kBytes = 1 << 13, kBf16 = 1 << 14;  // of Linux's HWCAP and HWCAP2
  const unsigned long second = getauxval(AT_HWCAP2);
  return getauxval(AT_HWCAP) & kDotProducts && second & kBytes && second & kBf16;
#else
  return false;
#endif
}

#else

bool can_run(const char*) { return false; }

#endif

}  // namespace

extern "C" int tandem_can_run(const char* set) { return can_run(set); }
