// Layers of ConvNeXts beside products: depthwise convolution, and the norm of each pixel over its channels.

#include <algorithm>

#include "ends.h"

namespace {

constexpr int64_t kMost = 4;  // output pixels at a time, which share the weights

}  // namespace

// y = activation(sum over taps of x * weight + bias), channel by channel; weight (tap, channel), stride 1 or more
extern "C" void depthwise_convolution_float32(const float* x, const float* weight, const float* bias, float* y,
                                              int64_t activation, int64_t n, int64_t h, int64_t w, int64_t channels,
                                              int64_t ky, int64_t kx, int64_t sy, int64_t sx, int64_t py, int64_t px,
                                              int threads) {
  const int64_t rows = (h + 2 * py - ky) / sy + 1, columns = (w + 2 * px - kx) / sx + 1;
#pragma omp parallel for num_threads(threads)
  for (int64_t line = 0; line < n * rows; line++) {
    const int64_t top = line % rows * sy - py;
    const int64_t i0 = std::max<int64_t>(-top, 0), i1 = std::min(ky, h - top);
    const float* image = x + (line / rows * h + top) * w * channels;
    for (int64_t column = 0; column < columns;) {
      const int64_t left = column * sx - px;
      const bool whole = left >= 0 && column + kMost <= columns && left + (kMost - 1) * sx + kx <= w;
      const int64_t j0 = whole ? 0 : std::max<int64_t>(-left, 0), j1 = whole ? kx : std::min(kx, w - left);
      float* to = y + (line * columns + column) * channels;
      for_vectors(channels, [&](int64_t c) {
        Floats sums[kMost];
        for (Floats& sum : sums) sum = load(bias + c);
        for (int64_t i = i0; i < i1; i++) {
          for (int64_t j = j0; j < j1; j++) {
            const Floats factor = load(weight + (i * kx + j) * channels + c);
            const float* from = image + (i * w + left + j) * channels + c;
            if (whole) unroll<kMost>([&](auto t) { sums[t] += factor * load(from + t * sx * channels); });
            else sums[0] += factor * load(from);
          }
        }
        for (int64_t t = 0; t < (whole ? kMost : 1); t++) store(to + t * channels + c, activate(sums[t], activation));
      });
      column += whole ? kMost : 1;
    }
  }
}

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, for each of `rows` rows of channels
extern "C" void layer_norm_float32(const float* x, const float* weight, const float* bias, float* y, int64_t rows,
                                   int64_t channels, double epsilon, int threads) {
  Floats fresh = {};  // lanes of the last vector that are not in the one before
  for (int64_t lane = 0; lane < kLanes; lane++) fresh[lane] = channels % kLanes == 0 || lane >= kLanes - channels % kLanes;
  const auto add = [&](auto value) {
    Floats sums = {};
    for (int64_t c = 0; c + kLanes <= channels; c += kLanes) sums += value(c);
    if (channels % kLanes) sums += value(channels - kLanes) * fresh;
    float sum = 0;
    for (int64_t lane = 0; lane < kLanes; lane++) sum += sums[lane];
    return sum / float(channels);
  };
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const float* from = x + row * channels;
    const float mean = add([&](int64_t c) { return load(from + c); });
    const float variance = add([&](int64_t c) { return (load(from + c) - mean) * (load(from + c) - mean); });
    const float factor = 1.f / __builtin_sqrtf(variance + float(epsilon));
    for_vectors(channels, [&](int64_t c) {
      store(y + row * channels + c, (load(from + c) - mean) * factor * load(weight + c) + load(bias + c));
    });
  }
}
