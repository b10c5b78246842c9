// A network as a list of steps, each a convolution or a pool, over maps in one piece of memory.

#include <algorithm>

#include "ends.h"

extern "C" {
#define WINOGRAD(m)                                                                                              \
  void winograd_convolution_##m##_float32(const float*, const float*, float*, const float*, const float*, int64_t, \
                                          int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
WINOGRAD(2)
WINOGRAD(3)
WINOGRAD(4)
void direct_convolution_float32(const float*, const float*, const float*, const float*, float*, int64_t, int64_t,
                                int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                int64_t, int);
void depthwise_convolution_float32(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t,
                                   int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
void layer_norm_float32(const float*, const float*, const float*, float*, int64_t, int64_t, double, int);
}

namespace {

// Step of `flat.py`; places are in values from the start of the memory. The images are at place -1, the features
// at -2, and a residual of -3 is none.
struct Step {
  int64_t kind, input, output, residual;
  const float *kernels, *bias;
  int64_t activation, batch, height, width, channels, out, kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
  int64_t rows, columns;  // of the output
  double epsilon;
};

enum Kind { kDirect = 0, kMaximum = 1, kMean = 5, kDepthwise = 6, kNorm = 7 };  // 2, 3 and 4: Winograd's algorithm with these tiles

// The maximum or mean of the pixels of the image in each window.
void pool(const float* x, float* y, const Step& s, int threads) {
  const int64_t rows = s.rows, columns = s.columns;
  const bool is_mean = s.kind == kMean;
#pragma omp parallel for num_threads(threads)
  for (int64_t place = 0; place < s.batch * rows * columns; place++) {
    const int64_t top = place / columns % rows * s.stride_y - s.padding_y;
    const int64_t left = place % columns * s.stride_x - s.padding_x;
    const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + s.kernel_y, s.height);
    const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + s.kernel_x, s.width);
    const float* image = x + place / columns / rows * s.height * s.width * s.channels;
    float* to = y + place * s.channels;
    const float factor = 1.f / float((y1 - y0) * (x1 - x0));
    const auto over = [&](int64_t c, auto zero, auto read) {
      auto result = is_mean ? zero : read(image + (y0 * s.width + x0) * s.channels + c);
      for (int64_t i = y0; i < y1; i++) {
        for (int64_t j = x0; j < x1; j++) {
          const auto value = read(image + (i * s.width + j) * s.channels + c);
          if (is_mean) result += value;
          else result = (result < value) | (value != value) ? value : result;  // NaN stays
        }
      }
      return is_mean ? result * factor : result;
    };
    const auto all = [&](int64_t c) {
      store(to + c, over(c, Floats{}, [](const float* from) { return load(from); }));
    };
    if (s.channels >= kLanes) for_vectors(s.channels, all);
    else for (int64_t c = 0; c < s.channels; c++) to[c] = over(c, 0.f, [](const float* from) { return *from; });
  }
}

}  // namespace

extern "C" void program_run_float32(const Step* steps, int64_t count, const float* images, float* memory,
                                    float* features, int threads) {
  for (const Step* s = steps; s < steps + count; s++) {
    const float* x = s->input == -1 ? images : memory + s->input;
    float* y = s->output == -2 ? features : memory + s->output;
    const float* residual = s->residual == -3 ? nullptr : memory + s->residual;
    const auto winograd = s->kind == 2   ? winograd_convolution_2_float32
                          : s->kind == 3 ? winograd_convolution_3_float32
                                         : winograd_convolution_4_float32;
    if (s->kind == kDirect)
      direct_convolution_float32(x, s->kernels, s->bias, residual, y, s->activation, s->batch, s->height, s->width,
                                 s->channels, s->out, s->kernel_y, s->kernel_x, s->stride_y, s->stride_x,
                                 s->padding_y, s->padding_x, threads);
    else if (s->kind == kMaximum || s->kind == kMean)
      pool(x, y, *s, threads);
    else if (s->kind == kDepthwise)
      depthwise_convolution_float32(x, s->kernels, s->bias, y, s->activation, s->batch, s->height, s->width, s->channels,
                                    s->kernel_y, s->kernel_x, s->stride_y, s->stride_x, s->padding_y, s->padding_x,
                                    threads);
    else if (s->kind == kNorm)
      layer_norm_float32(x, s->kernels, s->bias, y, s->batch * s->height * s->width, s->channels, s->epsilon, threads);
    else
      winograd(x, s->kernels, y, s->bias, residual, s->activation, s->batch, s->height, s->width, s->channels, s->out,
               s->padding_y, threads);
  }
}
