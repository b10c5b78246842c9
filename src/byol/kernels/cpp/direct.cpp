// Convolution with any kernel, as a matrix product over the pixels under the kernel, and what follows it:
//
//     y[p, o] = activation(sum over taps k and channels c of x[pixel under tap k of p, c] * weight[o, k, c] + bias + residual)
//
// A block of output pixels and a part of the taps and channels ("depth") stay in the cache for all outputs.

#include <algorithm>
#include <memory>

#include "ends.h"
#include "products.h"

namespace {

constexpr int64_t kDepth = 160;          // of a part at most: its weights take 40 KB
constexpr int64_t kPixels = 16 * kRows;  // of a block at most,
constexpr int64_t kValues = 1 << 18;     // and the values under their kernels

struct Shape {
  int64_t batch, height, width, channels, out, kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
  int64_t rows() const { return (height + 2 * padding_y - kernel_y) / stride_y + 1; }
  int64_t columns() const { return (width + 2 * padding_x - kernel_x) / stride_x + 1; }
  int64_t depth() const { return kernel_y * kernel_x * channels; }
  bool is_product() const {
    return kernel_y * kernel_x == 1 && stride_y * stride_x == 1 && padding_y + padding_x == 0;
  }
};

// to[row, k, c] = pixel of x under tap k of output pixel first + row, or 0 outside the image.
void unfold(const float* x, float* to, const Shape& s, int64_t first, int64_t count) {
  for (int64_t row = 0; row < count; row++) {
    const int64_t column = (first + row) % s.columns(), line = (first + row) / s.columns() % s.rows();
    const float* image = x + (first + row) / s.columns() / s.rows() * s.height * s.width * s.channels;
    const int64_t left = column * s.stride_x - s.padding_x;
    const int64_t from = std::clamp<int64_t>(-left, 0, s.kernel_x);
    const int64_t end = std::clamp<int64_t>(s.width - left, from, s.kernel_x);
    for (int64_t i = 0; i < s.kernel_y; i++, to += s.kernel_x * s.channels) {
      const int64_t top = line * s.stride_y - s.padding_y + i;
      const bool inside = top >= 0 && top < s.height;
      const int64_t a = inside ? from : s.kernel_x, b = inside ? end : s.kernel_x;
      if (a > 0) std::fill(to, to + a * s.channels, 0.f);
      std::copy_n(image + (top * s.width + left + a) * s.channels, (b - a) * s.channels, to + a * s.channels);
      if (b < s.kernel_x) std::fill(to + b * s.channels, to + s.kernel_x * s.channels, 0.f);
    }
  }
}

// y = activation(M + bias + residual) of one pixel
inline void finish(const float* M, const float* bias, const float* residual, int64_t activation, float* y,
                   int64_t count) {
  if (count < kLanes) {
    float some[2][kLanes] = {};
    std::copy_n(bias, count, some[0]);
    if (residual) std::copy_n(residual, count, some[1]);
    store(some[0], activate(load(M) + load(some[0]) + load(some[1]), activation));
    std::copy_n(some[0], count, y);
    return;
  }
  for_vectors(count, [&](int64_t o) {
    const Floats sum = load(M + o) + load(bias + o);
    store(y + o, activate(residual ? sum + load(residual + o) : sum, activation));
  });
}

void convolution(const float* x, const float* U, const float* bias, const float* residual, float* y, int64_t activation,
                 const Shape& s, int threads) {
  const int64_t pixels = s.batch * s.rows() * s.columns(), depth = s.depth(), out = s.out;
  const int64_t share = (pixels + threads - 1) / threads;
  const int64_t most = std::clamp<int64_t>(kValues / depth, kRows, kPixels) / kRows * kRows;
  const int64_t block = std::min(most, (share + kRows - 1) / kRows * kRows);
  const int64_t parts = (depth + kDepth - 1) / kDepth, part = (depth + parts - 1) / parts;
#pragma omp parallel num_threads(threads)
  {
    const auto copied = std::make_unique_for_overwrite<float[]>(s.is_product() ? 1 : block * depth);
    const auto M = std::make_unique_for_overwrite<float[]>(block * kOutputs);
#pragma omp for
    for (int64_t first = 0; first < pixels; first += block) {
      const int64_t count = std::min(block, pixels - first);
      const float* V = x + first * depth;
      if (!s.is_product()) unfold(x, copied.get(), s, first, count), V = copied.get();
      for (int64_t from = 0; from < out; from += kOutputs) {
        const int64_t outputs = std::min(kOutputs, out - from);
        for (int64_t k = 0; k < depth; k += part)
          product(V + k, depth, U + from * depth + k * kOutputs, kOutputs, M.get(), kOutputs, count,
                  std::min(part, depth - k), outputs, k > 0);
        for (int64_t t = 0; t < count; t++) {
          const int64_t place = (first + t) * out + from;
          finish(M.get() + t * kOutputs, bias + from, residual ? residual + place : nullptr, activation, y + place, outputs);
        }
      }
    }
  }
}

}  // namespace

extern "C" int64_t direct_outputs_float32() { return kOutputs; }

// U[block of outputs, depth, output] from weight (out, depth); outputs beyond the last are 0.
extern "C" void direct_pack_float32(const float* weight, float* U, int64_t out, int64_t depth, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t from = 0; from < out; from += kOutputs)
    for (int64_t k = 0; k < depth; k++)
      for (int64_t o = 0; o < kOutputs; o++)
        U[from * depth + k * kOutputs + o] = from + o < out ? weight[(from + o) * depth + k] : 0.f;
}

extern "C" void direct_convolution_float32(const float* x, const float* U, const float* bias, const float* residual,
                                           float* y, int64_t activation, int64_t n, int64_t h, int64_t w, int64_t c,
                                           int64_t o, int64_t ky, int64_t kx, int64_t sy, int64_t sx, int64_t py,
                                           int64_t px, int threads) {
  convolution(x, U, bias, residual, y, activation, Shape{n, h, w, c, o, ky, kx, sy, sx, py, px}, threads);
}
