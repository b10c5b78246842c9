// BatchNorm, addition and ReLU with the smallest possible number of passes over the images.
//
//     y = relu((x - mean) * scale + bias + residual),   scale = weight / sqrt(variance + eps)
//
// Images are rows of `channels` values. Sums over 32 rows are in float, sums of these in double, over blocks of
// rows that do not depend on the number of threads.

#include <cmath>
#include <vector>

#include "vectors.h"

constexpr int64_t kRows = 32;
constexpr int64_t kBlocks = 64;

// For each channel, sums two values over the rows; add(row, channel, first, second) adds those of a row.
template <class Add>
std::vector<double> sum_rows(int64_t rows, int64_t channels, int threads, Add add) {
  constexpr int wide = kGroup / kLanes;
  const int64_t blocks = rows < kBlocks * kRows ? (rows + kRows - 1) / kRows : kBlocks;
  std::vector<double> partial(blocks * 2 * channels);
#pragma omp parallel for num_threads(threads)
  for (int64_t block = 0; block < blocks; block++) {
    double* sums = partial.data() + block * 2 * channels;
    const int64_t end = rows * (block + 1) / blocks;
    for (int64_t from = rows * block / blocks; from < end; from += kRows) {
      const int64_t to = from + kRows < end ? from + kRows : end;
      for (int64_t channel = 0; channel < channels; channel += kGroup) {
        Floats first[wide] = {}, second[wide] = {};
        for (int64_t row = from; row < to; row++)
          unroll<wide>([&](auto i) { add(row, channel + i * kLanes, first[i], second[i]); });
        unroll<wide>([&](auto i) {
          for (int64_t lane = 0; lane < kLanes; lane++) {
            sums[channel + i * kLanes + lane] += first[i][lane];
            sums[channels + channel + i * kLanes + lane] += second[i][lane];
          }
        });
      }
    }
  }
  for (int64_t block = 1; block < blocks; block++)
    for (int64_t i = 0; i < 2 * channels; i++) partial[i] += partial[block * 2 * channels + i];
  return partial;
}

// Computes mean and 1 / sqrt(variance + eps) of each channel; returns scale, and updates the running statistics
// (with the unbiased variance).
template <class T>
std::vector<float> measure(const T* x, const float* weight, float* mean, float* inverse_std,
                           float* running_mean, float* running_var, int64_t rows, int64_t channels, double eps,
                           double momentum, int threads) {
  std::vector<float> shift(channels), scale(channels);  // sums squares of x - shift, to lose few digits
  for (int64_t channel = 0; channel < channels; channel += kLanes) store(&shift[channel], load(x + channel));
  const float* shifts = shift.data();
  const std::vector<double> sums =
      sum_rows(rows, channels, threads, [=](int64_t row, int64_t channel, Floats& sum, Floats& square) {
        const Floats value = load(x + row * channels + channel) - load(shifts + channel);
        sum += value;
        square += value * value;
      });
  for (int64_t channel = 0; channel < channels; channel++) {
    const double shifted = sums[channel] / rows;
    const double variance = std::fmax(sums[channels + channel] / rows - shifted * shifted, 0.);
    mean[channel] = shift[channel] + shifted;
    inverse_std[channel] = 1. / std::sqrt(variance + eps);
    scale[channel] = weight[channel] * inverse_std[channel];
    running_mean[channel] += momentum * (mean[channel] - running_mean[channel]);
    running_var[channel] += momentum * (variance * rows / (rows - 1) - running_var[channel]);
  }
  return scale;
}

// `residual` may be null.
template <class T>
void forward(const T* x, const T* residual, const float* weight, const float* bias, T* y, float* mean,
             float* inverse_std, float* running_mean, float* running_var, int64_t rows, int64_t channels,
             double eps, double momentum, int threads) {
  const std::vector<float> scale = measure(x, weight, mean, inverse_std, running_mean, running_var, rows,
                                           channels, eps, momentum, threads);
  const float* scales = scale.data();
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      const int64_t at = row * channels + channel;
      Floats value = (load(x + at) - load(mean + channel)) * load(scales + channel) + load(bias + channel);
      if (residual) value += load(residual + at);
      store(y + at, value < 0.f ? Floats{} : value);
    }
  }
}

// The gradient after the ReLU with output y; unchanged if y is null.
template <class T>
inline Floats passed(const T* gradient, const T* y, int64_t at) {
  const Floats values = load(gradient + at);
  return y ? (load(y + at) <= 0.f ? Floats{} : values) : values;
}

// dx = scale * (g - mean(g) - x' * mean(g * x')), where x' is the normalised x and g the gradient of the input of
// the ReLU; from the sums of g and g * (x - mean), which also give the gradients of weight and bias.
struct Slopes {
  std::vector<float> scale, slope, offset;
  Slopes(const std::vector<double>& sums, const float* weight, const float* inverse_std,
         float* weight_gradient, float* bias_gradient, int64_t rows, int64_t channels)
      : scale(channels), slope(channels), offset(channels) {
    for (int64_t channel = 0; channel < channels; channel++) {
      const double inverse = inverse_std[channel], total = sums[channels + channel] * inverse;
      bias_gradient[channel] = sums[channel];
      weight_gradient[channel] = total;
      scale[channel] = weight[channel] * inverse;
      slope[channel] = -weight[channel] * inverse * inverse * total / rows;
      offset[channel] = -weight[channel] * inverse * sums[channel] / rows;
    }
  }
  Floats apply(Floats g, Floats centred, int64_t channel) const {
    return load(&scale[channel]) * g + load(&slope[channel]) * centred + load(&offset[channel]);
  }
};

// The gradient of the residual is g (null: not needed).
template <class T>
void backward(const T* gradient, const T* y, const T* x, const float* weight, const float* mean,
              const float* inverse_std, T* dx, T* residual_gradient, float* weight_gradient,
              float* bias_gradient, int64_t rows, int64_t channels, int threads) {
  const std::vector<double> sums =
      sum_rows(rows, channels, threads, [=](int64_t row, int64_t channel, Floats& sum, Floats& product) {
        const int64_t at = row * channels + channel;
        const Floats g = passed(gradient, y, at);
        sum += g;
        product += g * (load(x + at) - load(mean + channel));
      });
  const Slopes slopes(sums, weight, inverse_std, weight_gradient, bias_gradient, rows, channels);
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      const int64_t at = row * channels + channel;
      const Floats g = passed(gradient, y, at);
      if (residual_gradient) store(residual_gradient + at, g);
      store(dx + at, slopes.apply(g, load(x + at) - load(mean + channel), channel));
    }
  }
}

// ---- The start of a ResNet: y = maxpool(relu((x - mean) * scale + bias)), 3x3, stride 2, padding 1
//
// The map in between, the largest of a network, is never written: `winner` says which of the 9 pixels is largest.

struct Pool {
  int64_t batch, height, width, channels, out_height, out_width;
  Pool(int64_t batch, int64_t height, int64_t width, int64_t channels)
      : batch(batch), height(height), width(width), channels(channels), out_height((height + 1) / 2),
        out_width((width + 1) / 2) {}
};

template <class T>
void pool_forward(const T* x, const float* weight, const float* bias, T* y, uint8_t* winner, float* mean,
                  float* inverse_std, float* running_mean, float* running_var, int64_t batch, int64_t height,
                  int64_t width, int64_t channels, double eps, double momentum, int threads) {
  const Pool pool(batch, height, width, channels);
  const std::vector<float> scales = measure(x, weight, mean, inverse_std, running_mean, running_var,
                                            batch * height * width, channels, eps, momentum, threads);
  const float* scale = scales.data();
#pragma omp parallel for num_threads(threads)
  for (int64_t line = 0; line < batch * pool.out_height; line++) {
    const T* image = x + line / pool.out_height * height * width * channels;
    const int64_t top = line % pool.out_height * 2 - 1;
    for (int64_t column = 0; column < pool.out_width; column++) {
      const int64_t left = column * 2 - 1, at = (line * pool.out_width + column) * channels;
      for (int64_t channel = 0; channel < channels; channel += kLanes) {
        const Floats centre = load(mean + channel), factor = load(scale + channel);
        const Floats offset = load(bias + channel);
        Floats best = {};  // starts at 0, which is the ReLU
        Words taken = Words{} + 9u;
        for (int tap = 0; tap < 9; tap++) {
          const int64_t row = top + tap / 3, place = left + tap % 3;
          if (row < 0 || row >= height || place < 0 || place >= width) continue;
          const Floats value = (load(image + (row * width + place) * channels + channel) - centre) * factor + offset;
          const auto better = value > best || value != value;
          best = better ? value : best;
          taken = better ? Words{} + uint32_t(tap) : taken;
        }
        store(y + at + channel, best);
        const Bytes bytes = __builtin_convertvector(__builtin_convertvector(taken, Halves), Bytes);
        std::memcpy(winner + at + channel, &bytes, sizeof bytes);
      }
    }
  }
}

inline Words winners(const uint8_t* from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Halves), Words);
}

template <class T>
void pool_backward(const T* gradient, const uint8_t* winner, const T* x, const float* weight,
                   const float* mean, const float* inverse_std, T* dx, float* weight_gradient,
                   float* bias_gradient, int64_t batch, int64_t height, int64_t width, int64_t channels,
                   int threads) {
  const Pool pool(batch, height, width, channels);
  // First, dx is the gradient of each pixel: the sum over the (at most 4) outputs for which it is the winner.
#pragma omp parallel for num_threads(threads)
  for (int64_t line = 0; line < batch * height; line++) {
    const int64_t image = line / height, row = line % height;
    for (int64_t column = 0; column < width; column++) {
      int64_t outputs[4];
      uint32_t taps[4];
      int count = 0;
      for (int64_t y = row / 2; y <= (row + 1) / 2 && y < pool.out_height; y++) {
        for (int64_t x = column / 2; x <= (column + 1) / 2 && x < pool.out_width; x++) {
          outputs[count] = ((image * pool.out_height + y) * pool.out_width + x) * channels;
          taps[count++] = uint32_t((row - 2 * y + 1) * 3 + column - 2 * x + 1);
        }
      }
      T* to = dx + (line * width + column) * channels;
      for (int64_t channel = 0; channel < channels; channel += kLanes) {
        Floats sum = {};
        for (int i = 0; i < count; i++) {
          const int64_t at = outputs[i] + channel;
          sum += winners(winner + at) == taps[i] ? load(gradient + at) : Floats{};
        }
        store(to + channel, sum);
      }
    }
  }
  backward(dx, static_cast<const T*>(nullptr), x, weight, mean, inverse_std, dx, static_cast<T*>(nullptr),
           weight_gradient, bias_gradient, batch * height * width, channels, threads);
}

#define NORM(T, name)                                                                                         \
  extern "C" void norm_forward_##name(const T* x, const T* r, const float* w, const float* b, T* y, float* m, \
                                      float* i, float* rm, float* rv, int64_t rows, int64_t channels,         \
                                      double eps, double momentum, int threads) {                             \
    forward(x, r, w, b, y, m, i, rm, rv, rows, channels, eps, momentum, threads);                             \
  }                                                                                                           \
  extern "C" void norm_backward_##name(const T* g, const T* y, const T* x, const float* w, const float* m,    \
                                       const float* i, T* dx, T* dr, float* dw, float* db, int64_t rows,      \
                                       int64_t channels, int threads) {                                       \
    backward(g, y, x, w, m, i, dx, dr, dw, db, rows, channels, threads);                                      \
  }

#define POOL(T, name)                                                                                         \
  extern "C" void pool_forward_##name(const T* x, const float* w, const float* b, T* y, uint8_t* k, float* m, \
                                      float* i, float* rm, float* rv, int64_t n, int64_t h, int64_t width,    \
                                      int64_t c, double eps, double momentum, int threads) {                  \
    pool_forward(x, w, b, y, k, m, i, rm, rv, n, h, width, c, eps, momentum, threads);                        \
  }                                                                                                           \
  extern "C" void pool_backward_##name(const T* g, const uint8_t* k, const T* x, const float* w,              \
                                       const float* m, const float* i, T* dx, float* dw, float* db,           \
                                       int64_t n, int64_t h, int64_t width, int64_t c, int threads) {         \
    pool_backward(g, k, x, w, m, i, dx, dw, db, n, h, width, c, threads);                                     \
  }

NORM(float, float32)
NORM(bfloat16, bfloat16)
POOL(float, float32)
POOL(bfloat16, bfloat16)
