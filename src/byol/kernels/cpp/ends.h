// What follows a sum: bias, residual and activation; and rows of any number of channels, vector by vector.

#pragma once

#include "vectors.h"

enum Activation : int64_t { kNone = 0, kRelu = 1, kGelu = 2 };

// exp(x), with a relative error of 2e-7; x below -87 counts as -87, which gives 1e-38.
inline Floats exponential(Floats x) {
  x = x < -87.f ? Floats{} - 87.f : x;
  x = x > 88.f ? Floats{} + 88.f : x;
  const Floats shifted = x * 1.44269504f + 12582912.f;  // the integer is in the last bits
  const Floats n = shifted - 12582912.f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  Words bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000u + 127u) << 23;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// x / 2 * (1 + erf(x / sqrt(2))); erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7
inline Floats gelu(Floats x) {
  const Floats z = (x < 0.f ? -x : x) * 0.70710678f;
  const Floats t = 1.f / (z * 0.3275911f + 1.f);
  Floats p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats erf = 1.f - p * t * exponential(-z * z);
  return x * .5f * (1.f + (x < 0.f ? -erf : erf));
}

inline Floats activate(Floats x, int64_t activation) {
  if (activation == kRelu) return x < 0.f ? Floats{} : x;
  return activation == kGelu ? gelu(x) : x;
}

// Calls body(first channel) for vectors that cover `count` channels, the last of which may overlap the one before.
template <class Body>
inline void for_vectors(int64_t count, Body body) {
  for (int64_t c = 0; c + kLanes <= count; c += kLanes) body(c);
  if (count % kLanes) body(count - kLanes);
}
