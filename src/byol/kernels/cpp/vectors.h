// Values of images as vectors, for the loops that are compiled on the user's machine (see kernels/build.py).
//
// Images are channels_last: (batch, height, width, channel), channel a multiple of 32. Values are float or
// bfloat16 in memory and float in registers; each output value is rounded once, and NaN stays NaN.
// The vector types are those of GCC and Clang, so that the same source serves every kind of CPU.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// The width and the number of the registers of the CPU: wider vectors would be split and spilled to memory.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int64_t kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int64_t kLanes = 4;
constexpr int kRegisters = 16;
#endif

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));

constexpr int64_t kGroup = 32;  // the number of channels is a multiple of this

struct bfloat16 {
  uint16_t bits;
};

template <int n, class F>
inline __attribute__((always_inline)) void unroll(F body) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (body(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Floats load(const bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats values;
  std::memcpy(&values, &words, sizeof values);
  return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline void store(bfloat16* to, Floats values) {
#ifdef __AVX512BF16__
  __m512 same;
  std::memcpy(&same, &values, sizeof values);
  __m256bh halves = _mm512_cvtneps_pbh(same);
#else
  Words words;
  std::memcpy(&words, &values, sizeof values);
  Words is_nan = (Words)((words & 0x7fffffffu) > 0x7f800000u);
  Words rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
  Halves halves = __builtin_convertvector((is_nan & ((words >> 16) | 0x40u)) | (~is_nan & rounded), Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}
