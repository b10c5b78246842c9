// The compiled loops against plain ones in double, without Python: for CPUs that can only be emulated.
// Prints the largest relative error of each.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" {
#define WINOGRAD(m)                                                                                      \
  void winograd_pack_##m##_float32(const float*, float*, int64_t, int64_t, int);                         \
  void winograd_pack_back_##m##_float32(const float*, float*, int64_t, int64_t, int);                    \
  void winograd_convolution_##m##_float32(const float*, const float*, float*, const float*, const float*, \
                                          int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
WINOGRAD(2)
WINOGRAD(3)
WINOGRAD(4)
void norm_forward_float32(const float*, const float*, const float*, const float*, float*, float*, float*, float*,
                          float*, int64_t, int64_t, double, double, int);
}

constexpr int64_t batch = 3, height = 7, width = 10, channels = 32, out = 64;

static std::vector<float> draw(int64_t count, uint32_t state) {
  std::vector<float> values(count);
  for (float& value : values) value = float((state = state * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1.f;
  return values;
}

static double error(const std::vector<float>& got, const std::vector<double>& expected) {
  double largest = 0, scale = 0;
  for (size_t i = 0; i < got.size(); i++) {
    largest = std::fmax(largest, std::isfinite(got[i]) ? std::fabs(got[i] - expected[i]) : 1e30);
    scale = std::fmax(scale, std::fabs(expected[i]));
  }
  return largest / scale;
}

// Convolution 3x3 with padding 1 of x (batch, height, width, from) to `to` channels; back: with the kernels turned.
static std::vector<double> convolve(const std::vector<float>& x, const std::vector<float>& weight, int64_t from,
                                    int64_t to, bool back) {
  std::vector<double> y(batch * height * width * to);
  for (int64_t n = 0; n < batch; n++)
    for (int64_t i = 0; i < height; i++)
      for (int64_t j = 0; j < width; j++)
        for (int64_t o = 0; o < to; o++) {
          double sum = 0;
          for (int64_t tap = 0; tap < 9; tap++) {
            const int64_t row = i + tap / 3 - 1, column = j + tap % 3 - 1;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            for (int64_t c = 0; c < from; c++) {
              const int64_t at = back ? (c * 9 + 8 - tap) * to + o : (o * 9 + tap) * from + c;
              sum += double(x[((n * height + row) * width + column) * from + c]) * weight[at];
            }
          }
          y[((n * height + i) * width + j) * to + o] = sum;
        }
  return y;
}

template <class Pack, class Convolve>
static void check(const char* name, int m, int64_t from, int64_t to, bool back, Pack pack, Convolve run) {
  const std::vector<float> x = draw(batch * height * width * from, 1), weight = draw(out * 9 * channels, 2);
  std::vector<float> U((m + 2) * (m + 2) * out * channels), y(batch * height * width * to);
  pack(weight.data(), U.data(), out, channels, 1);
  std::vector<double> expected = convolve(x, weight, from, to, back);
  const std::vector<float> bias = draw(to, 3), residual = draw(y.size(), 4);
  if (!back)
    for (size_t i = 0; i < y.size(); i++) expected[i] = std::fmax(expected[i] + bias[i % to] + residual[i], 0.);
  run(x.data(), U.data(), y.data(), back ? nullptr : bias.data(), back ? nullptr : residual.data(), !back, batch,
      height, width, from, to, 1, 1);
  std::printf("%s_%d %g\n", name, m, error(y, expected));
}

int main() {
#define CHECK(m)                                                                                          \
  check("forward", m, channels, out, false, winograd_pack_##m##_float32, winograd_convolution_##m##_float32); \
  check("back", m, out, channels, true, winograd_pack_back_##m##_float32, winograd_convolution_##m##_float32);
  CHECK(2) CHECK(3) CHECK(4)

  const int64_t rows = 100;
  const std::vector<float> x = draw(rows * channels, 3), residual = draw(rows * channels, 4);
  const std::vector<float> weight = draw(channels, 5), bias = draw(channels, 6);
  std::vector<float> y(rows * channels), mean(channels), inverse(channels), running(channels), variance(channels);
  norm_forward_float32(x.data(), residual.data(), weight.data(), bias.data(), y.data(), mean.data(), inverse.data(),
                       running.data(), variance.data(), rows, channels, 1e-5, 0.1, 1);
  std::vector<double> expected(rows * channels);
  for (int64_t c = 0; c < channels; c++) {
    double sum = 0, square = 0;
    for (int64_t r = 0; r < rows; r++) sum += x[r * channels + c];
    for (int64_t r = 0; r < rows; r++) square += std::pow(x[r * channels + c] - sum / rows, 2);
    for (int64_t r = 0; r < rows; r++) {
      const double normal = (x[r * channels + c] - sum / rows) / std::sqrt(square / rows + 1e-5);
      expected[r * channels + c] = std::fmax(normal * weight[c] + bias[c] + residual[r * channels + c], 0.);
    }
  }
  std::printf("norm %g\n", error(y, expected));
}
