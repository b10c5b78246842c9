// M = V U, or M += V U, for a few rows and the outputs of one block.

#pragma once

#include "vectors.h"

constexpr int kVectors = kRegisters == 32 ? 4 : 2;
constexpr int64_t kOutputs = kVectors * kLanes;  // of a block
constexpr int kRows = 6;                         // at a time: 6 x kVectors sums, kVectors of U and a value

// Rows of V, U and M are `v`, `u` and `m` values apart.
template <int rows, int vectors>
void multiply(const float* V, int64_t v, const float* U, int64_t u, float* M, int64_t m, int64_t depth, bool add) {
  Floats sums[rows][vectors] = {};
  if (add)
    unroll<rows>([&](auto t) { unroll<vectors>([&](auto i) { sums[t][i] = load(M + t * m + i * kLanes); }); });
  for (int64_t k = 0; k < depth; k++) {
    unroll<rows>([&](auto t) {
      const float value = V[t * v + k];
      unroll<vectors>([&](auto i) { sums[t][i] += value * load(U + k * u + i * kLanes); });
    });
  }
  unroll<rows>([&](auto t) { unroll<vectors>([&](auto i) { store(M + t * m + i * kLanes, sums[t][i]); }); });
}

template <int rows>
auto choose(int64_t vectors) {
  if constexpr (kVectors == 4) {
    if (vectors == 4) return multiply<rows, 4>;
    if (vectors == 3) return multiply<rows, 3>;
  }
  return vectors == 2 ? multiply<rows, 2> : multiply<rows, 1>;
}

// For `count` rows and up to kOutputs outputs; whole vectors of U are read and of M written.
inline void product(const float* V, int64_t v, const float* U, int64_t u, float* M, int64_t m, int64_t count,
                    int64_t depth, int64_t outputs, bool add = false) {
  const int64_t vectors = (outputs + kLanes - 1) / kLanes;
  const auto six = choose<kRows>(vectors), three = choose<3>(vectors), one = choose<1>(vectors);
  for (int64_t t = 0; t < count;) {
    const int64_t rows = count - t >= kRows ? kRows : count - t >= 3 ? 3 : 1;
    (rows == kRows ? six : rows == 3 ? three : one)(V + t * v, v, U, u, M + t * m, m, depth, add);
    t += rows;
  }
}
