// The matrices A, G and B of Winograd's algorithm for tiles of m x m output pixels, and products with them.

#pragma once

#include "vectors.h"

// ---- The matrices

template <int m>
struct Tile;

template <>
struct Tile<2> {  // points 0, 1, -1
  static constexpr float A[4][2] = {{1, 0}, {1, 1}, {1, -1}, {0, 1}};
  static constexpr float G[4][3] = {{-1, 0, 0}, {.5f, .5f, .5f}, {.5f, -.5f, .5f}, {0, 0, 1}};
  static constexpr float B[4][4] = {{-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
};

template <>
struct Tile<3> {  // points 0, 1/2, -1, 2: the smallest error of those that were tried
  static constexpr float A[5][3] = {{1, 0, 0}, {1, .5f, .25f}, {1, -1, 1}, {1, 2, 4}, {0, 0, 1}};
  static constexpr float G[5][3] = {{1, 0, 0},
                                    {-8 / 9.f, -4 / 9.f, -2 / 9.f},
                                    {-2 / 9.f, 2 / 9.f, -2 / 9.f},
                                    {1 / 9.f, 2 / 9.f, 4 / 9.f},
                                    {0, 0, 1}};
  static constexpr float B[5][5] = {{1, -1.5f, -1.5f, 1, 0},
                                    {0, -2, -1, 1, 0},
                                    {0, 1, -2.5f, 1, 0},
                                    {0, -.5f, .5f, 1, 0},
                                    {0, 1, -1.5f, -1.5f, 1}};
};

template <>
struct Tile<4> {  // points 0, 1, -1, 2, -2
  static constexpr float A[6][4] = {{1, 0, 0, 0}, {1, 1, 1, 1},   {1, -1, 1, -1},
                                    {1, 2, 4, 8}, {1, -2, 4, -8}, {0, 0, 0, 1}};
  static constexpr float G[6][3] = {{.25f, 0, 0},
                                    {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                                    {-1 / 6.f, 1 / 6.f, -1 / 6.f},
                                    {1 / 24.f, 1 / 12.f, 1 / 6.f},
                                    {1 / 24.f, -1 / 12.f, 1 / 6.f},
                                    {0, 0, 1}};
  static constexpr float B[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                                    {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
};

template <int m>
struct A {
  static constexpr float at(int r, int c) { return Tile<m>::A[r][c]; }
};
template <int m>
struct G {
  static constexpr float at(int r, int c) { return Tile<m>::G[r][c]; }
};
template <int m>
struct B {  // the table holds B^T
  static constexpr float at(int r, int c) { return Tile<m>::B[r][c]; }
};
template <class L>
struct Transposed {
  static constexpr float at(int r, int c) { return L::at(c, r); }
};

// sum over j of L(r, j) * value(j); the compiler knows L, and omits products with 0, 1 and -1.
template <class L, int r, int n, class Value>
inline __attribute__((always_inline)) Floats combine(Value value) {
  Floats sum = {};
  unroll<n>([&](auto j) {
    constexpr float factor = L::at(r, decltype(j)::value);
    if constexpr (factor == 1.f) sum += value(j);
    else if constexpr (factor == -1.f) sum -= value(j);
    else if constexpr (factor != 0.f) sum += factor * value(j);
  });
  return sum;
}

// to = L from L^T, where `from` is a square of `in` x `in` vectors.
template <class L, int out, int in>
inline __attribute__((always_inline)) void sandwich(const Floats (&from)[in * in], Floats (&to)[out * out]) {
  Floats half[out * in];
  unroll<out>([&](auto r) {
    unroll<in>([&](auto c) {
      half[r * in + c] = combine<L, decltype(r)::value, in>([&](int j) { return from[j * in + c]; });
    });
  });
  unroll<out>([&](auto r) {
    unroll<out>([&](auto c) {
      to[r * out + c] = combine<L, decltype(c)::value, in>([&](int j) { return half[r * in + j]; });
    });
  });
}
