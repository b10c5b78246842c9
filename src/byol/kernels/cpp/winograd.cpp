// 3x3 convolution of stride 1 with the Winograd algorithm, in tiles of m x m output pixels.
//
// With d a tile of (m + 2)^2 input pixels and g a kernel,
//
//     V = B^T d B,   U = G g G^T,   M = sum over input channels of V * U,   output = A^T M A
//
// where * is a product at each of the (m + 2)^2 places (Lavin and Gray, arXiv 1509.09308, eq. 8; matrices by the
// Toom-Cook method). A block of tiles stays in the cache from its pixels to its output; M is float.

#include <vector>

#include "tiles.h"
#include "vectors.h"

// ---- One tile

struct Map {  // a map of output pixels, and its tiles
  int64_t height, width, rows, columns;
  Map(int64_t height, int64_t width, int m)
      : height(height), width(width), rows((height + m - 1) / m), columns((width + m - 1) / m) {}
  int64_t count() const { return rows * columns; }
};

// V of the tile whose first input pixel is (top, left), with zeros outside the image; places are `stride` apart.
template <int m, class T>
inline void transform_input(const T* image, T* V, int64_t stride, int64_t top, int64_t left, int64_t height,
                            int64_t width, int64_t channels) {
  constexpr int n = m + 2;
  for (int64_t channel = 0; channel < channels; channel += kLanes) {
    Floats d[n * n], v[n * n];
    unroll<n>([&](auto i) {
      const bool inside = top + i >= 0 && top + i < height;
      const T* line = image + ((top + i) * width + left) * channels + channel;
      unroll<n>([&](auto j) {
        const bool there = inside && left + j >= 0 && left + j < width;
        d[i * n + j] = there ? load(line + j * channels) : Floats{};
      });
    });
    sandwich<B<m>, n, n>(d, v);
    unroll<n * n>([&](auto k) { store(V + k * stride + channel, v[k]); });
  }
}

template <class T>
struct End {  // output = relu(convolution + bias + residual), each only if wanted; null is not wanted
  const float* bias;
  const T* residual;  // as large as the output
  int64_t relu;
};

// `channels` channels of the output of the tile whose first pixel is (top, left), cropped to the map. They begin
// at channel `from` of the `out` channels.
template <int m, class T>
inline void transform_output(const float* M, int64_t stride, int64_t channels, T* output, int64_t image,
                             int64_t top, int64_t left, const Map& map, int64_t out, int64_t from, End<T> end) {
  constexpr int n = m + 2;
  for (int64_t channel = 0; channel < channels; channel += kLanes) {
    Floats products[n * n], pixels[m * m];
    unroll<n * n>([&](auto k) { products[k] = load(M + k * stride + channel); });
    sandwich<Transposed<A<m>>, m, n>(products, pixels);
    const Floats bias = end.bias ? load(end.bias + from + channel) : Floats{};
    unroll<m>([&](auto i) {
      unroll<m>([&](auto j) {
        if (top + i >= map.height || left + j >= map.width) return;
        const int64_t place = ((image * map.height + top + i) * map.width + left + j) * out + from + channel;
        Floats y = pixels[i * m + j] + bias;
        if (end.residual) y += load(end.residual + place);
        store(output + place, end.relu ? (y < 0.f ? Floats{} : y) : y);
      });
    });
  }
}

// ---- Kernels, packed for the products: U[place, block of outputs, unit of channels, output, channel of unit]
//
// A unit is 4 bytes: one channel of float, or two of bfloat16, which the CPU multiplies and adds in pairs.

constexpr int kVectors = kRegisters == 32 ? 4 : 2;
constexpr int64_t kOutputs = kVectors * kLanes;  // of a block
constexpr int64_t kSpan = 64;
constexpr int kTiles = 6;                        // 6 x kVectors sums, kVectors of kernels and a value: 29 or 15 registers

template <class T>
constexpr int kEach = 4 / sizeof(T);  // channels of a unit

template <class T>
inline uint32_t* unit_at(T* U, int64_t place, int64_t unit, int64_t output, int64_t units, int64_t out) {
  const int64_t block = place * (out / kOutputs) + output / kOutputs;
  return reinterpret_cast<uint32_t*>(U) + (block * units + unit) * kOutputs + output % kOutputs;
}

constexpr int64_t kLine = 16;  // units of a cache line: written completely, so that it need not be read first
static_assert(kOutputs % kLine == 0);

// U of a weight (out, 3, 3, channel).
template <int m, class T>
void pack(const float* weight, T* U, int64_t out, int64_t channels, int threads) {
  constexpr int n = m + 2;
  constexpr int units = kLanes / kEach<T>;
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < out; first += kLine) {
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      uint32_t values[n * n][kLine][units];
      for (int64_t o = 0; o < kLine; o++) {
        Floats g[9], u[n * n];
        unroll<9>([&](auto k) { g[k] = load(weight + ((first + o) * 9 + k) * channels + channel); });
        sandwich<G<m>, n, 3>(g, u);
        unroll<n * n>([&](auto k) { store(reinterpret_cast<T*>(values[k][o]), u[k]); });
      }
      for (int64_t k = 0; k < n * n; k++) {
        for (int64_t unit = 0; unit < units; unit++) {
          uint32_t* to = unit_at(U, k, channel / kEach<T> + unit, first, channels / kEach<T>, out);
          for (int64_t o = 0; o < kLine; o++) to[o] = values[k][o][unit];
        }
      }
    }
  }
}

// U of the convolution for the input gradient: the weight rotated by 180 degrees, its channels exchanged.
template <int m, class T>
void pack_back(const float* weight, T* U, int64_t out, int64_t channels, int threads) {
  constexpr int n = m + 2;
#pragma omp parallel for num_threads(threads)
  for (int64_t first = 0; first < out; first += kEach<T>) {
    for (int64_t channel = 0; channel < channels; channel += kLine) {
      T values[n * n][kEach<T>][kLine];
      for (int64_t o = 0; o < kEach<T>; o++) {
        for (int64_t c = 0; c < kLine; c += kLanes) {
          const float* from = weight + (first + o) * 9 * channels + channel + c;
          Floats g[9], u[n * n];
          unroll<9>([&](auto k) { g[k] = load(from + (8 - k) * channels); });
          sandwich<G<m>, n, 3>(g, u);
          unroll<n * n>([&](auto k) { store(values[k][o] + c, u[k]); });
        }
      }
      for (int64_t k = 0; k < n * n; k++) {
        T* to = reinterpret_cast<T*>(unit_at(U, k, first / kEach<T>, channel, out / kEach<T>, channels));
        for (int64_t c = 0; c < kLine; c++)
          for (int64_t o = 0; o < kEach<T>; o++) to[c * kEach<T> + o] = values[k][o][c];
      }
    }
  }
}

// ---- The convolution

template <class T>
inline __attribute__((always_inline)) Floats multiply_add(Floats sum, uint32_t unit, const uint32_t* kernels);

template <>
inline Floats multiply_add<float>(Floats sum, uint32_t unit, const uint32_t* kernels) {
  float value;
  std::memcpy(&value, &unit, 4);
  return sum + value * load(reinterpret_cast<const float*>(kernels));
}

#ifdef __AVX512BF16__
template <>
inline Floats multiply_add<bfloat16>(Floats sum, uint32_t unit, const uint32_t* kernels) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)unit),
                                  (__m512bh)_mm512_loadu_si512(kernels));
}
#endif

// M = V U for 6 tiles and a block of outputs; V is (tile, channel), rows of M are `stride` apart.
template <class T>
inline void multiply(const T* V, const uint32_t* U, float* M, int64_t channels, int64_t stride) {
  Floats sums[kTiles][kVectors] = {};
  for (int64_t unit = 0; unit < channels / kEach<T>; unit++) {
    unroll<kTiles>([&](auto t) {
      uint32_t value;
      std::memcpy(&value, V + t * channels + unit * kEach<T>, 4);
      unroll<kVectors>([&](auto v) {
        sums[t][v] = multiply_add<T>(sums[t][v], value, U + unit * kOutputs + v * kLanes);
      });
    });
  }
  unroll<kTiles>([&](auto t) {
    unroll<kVectors>([&](auto v) { store(M + t * stride + v * kLanes, sums[t][v]); });
  });
}

template <int m, class T>
void convolution(const T* images, const T* U, T* output, int64_t batch, int64_t height, int64_t width,
                 int64_t channels, int64_t out, int64_t padding, End<T> end, int threads) {
  constexpr int n = m + 2;
  const Map map(height + 2 * padding - 2, width + 2 * padding - 2, m);
  const int64_t tiles = batch * map.count();
  const int64_t block = kTiles * (channels * sizeof(T) > 512 ? 4 : 8);  // so that V stays in the cache
  const int64_t span = out % kSpan == 0 ? kSpan : kOutputs;  // outputs computed while a tile of V is in the cache
  // A place is a little larger than needed: at distances of a power of two, places would share cache lines.
  const int64_t v_size = block * channels + kGroup, m_size = block * span + kLanes;
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> V(n * n * v_size);
    std::vector<float> M(n * n * m_size);
#pragma omp for
    for (int64_t first = 0; first < tiles; first += block) {
      const int64_t count = first + block < tiles ? block : tiles - first;
      for (int64_t t = 0; t < count; t++) {
        const int64_t image = (first + t) / map.count(), tile = (first + t) % map.count();
        transform_input<m>(images + image * height * width * channels, V.data() + t * channels, v_size,
                           tile / map.columns * m - padding, tile % map.columns * m - padding, height, width,
                           channels);
      }
      for (int64_t from = 0; from < out; from += span) {
        for (int64_t k = 0; k < n * n; k++) {
          const uint32_t* kernels = unit_at(const_cast<T*>(U), k, 0, from, channels / kEach<T>, out);
          // Rows from `count` on hold old values, and are not read.
          for (int64_t t = 0; t < count; t += kTiles)
            for (int64_t o = 0; o < span; o += kOutputs)
              multiply(V.data() + k * v_size + t * channels, kernels + o * (channels / kEach<T>),
                       M.data() + k * m_size + t * span + o, channels, span);
        }
        for (int64_t t = 0; t < count; t++) {
          const int64_t image = (first + t) / map.count(), tile = (first + t) % map.count();
          transform_output<m>(M.data() + t * span, m_size, span, output, image, tile / map.columns * m,
                              tile % map.columns * m, map, out, from, end);
        }
      }
    }
  }
}

// ---- The parts of the weight gradient: dU = dM^T V is a matrix product for each place

// V[place, tile, channel]
template <int m, class T>
void input(const T* images, T* V, int64_t batch, int64_t height, int64_t width, int64_t channels,
           int64_t padding, int threads) {
  const Map map(height + 2 * padding - 2, width + 2 * padding - 2, m);
  const int64_t tiles = batch * map.count();
#pragma omp parallel for num_threads(threads)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t place = tile % map.count();
    transform_input<m>(images + tile / map.count() * height * width * channels, V + tile * channels,
                       tiles * channels, place / map.columns * m - padding,
                       place % map.columns * m - padding, height, width, channels);
  }
}

// dM[place, tile, channel] = A g A^T, where g is the gradient of the output
template <int m, class T>
void output_gradient(const T* gradient, T* M, int64_t batch, int64_t height, int64_t width, int64_t channels,
                     int threads) {
  constexpr int n = m + 2;
  const Map map(height, width, m);
  const int64_t tiles = batch * map.count();
#pragma omp parallel for num_threads(threads)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const T* image = gradient + tile / map.count() * height * width * channels;
    const int64_t top = tile % map.count() / map.columns * m, left = tile % map.count() % map.columns * m;
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      Floats pixels[m * m], products[n * n];
      unroll<m>([&](auto i) {
        unroll<m>([&](auto j) {
          const bool there = top + i < height && left + j < width;
          const T* from = image + ((top + i) * width + left + j) * channels + channel;
          pixels[i * m + j] = there ? load(from) : Floats{};
        });
      });
      sandwich<A<m>, n, m>(pixels, products);
      unroll<n * n>([&](auto k) { store(M + (k * tiles + tile) * channels + channel, products[k]); });
    }
  }
}

// Adds G^T dU G, where dU is (place, out, channel), to the gradient of the weight, (out, 3, 3, channel).
template <int m, class T>
void weight_gradient(const T* U, float* weight, int64_t out, int64_t channels, int threads) {
  constexpr int n = m + 2;
#pragma omp parallel for num_threads(threads)
  for (int64_t o = 0; o < out; o++) {
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      Floats u[n * n], g[9];
      unroll<n * n>([&](auto k) { u[k] = load(U + (k * out + o) * channels + channel); });
      sandwich<Transposed<G<m>>, 3, n>(u, g);
      unroll<9>([&](auto k) {
        float* place = weight + (o * 9 + k) * channels + channel;
        store(place, load(place) + g[k]);
      });
    }
  }
}

// ---- Functions that Python calls

extern "C" int64_t winograd_outputs() { return kOutputs; }

#define WINOGRAD(m, T, name)                                                                                  \
  extern "C" void winograd_pack_##m##_##name(const float* w, T* U, int64_t o, int64_t c, int threads) {       \
    pack<m>(w, U, o, c, threads);                                                                             \
  }                                                                                                           \
  extern "C" void winograd_pack_back_##m##_##name(const float* w, T* U, int64_t o, int64_t c, int threads) {  \
    pack_back<m>(w, U, o, c, threads);                                                                        \
  }                                                                                                           \
  extern "C" void winograd_convolution_##m##_##name(const T* x, const T* U, T* y, const float* b, const T* r, \
                                                    int64_t relu, int64_t n, int64_t h, int64_t w, int64_t c, \
                                                    int64_t o, int64_t p, int threads) {                      \
    convolution<m>(x, U, y, n, h, w, c, o, p, End<T>{b, r, relu}, threads);                                   \
  }                                                                                                           \
  extern "C" void winograd_input_##m##_##name(const T* x, T* V, int64_t n, int64_t h, int64_t w, int64_t c,   \
                                              int64_t p, int threads) {                                       \
    input<m>(x, V, n, h, w, c, p, threads);                                                                   \
  }                                                                                                           \
  extern "C" void winograd_output_gradient_##m##_##name(const T* g, T* M, int64_t n, int64_t h, int64_t w,    \
                                                        int64_t c, int threads) {                             \
    output_gradient<m>(g, M, n, h, w, c, threads);                                                            \
  }                                                                                                           \
  extern "C" void winograd_weight_gradient_##m##_##name(const T* U, float* w, int64_t o, int64_t c,           \
                                                        int threads) {                                        \
    weight_gradient<m>(U, w, o, c, threads);                                                                  \
  }

WINOGRAD(2, float, float32)
WINOGRAD(3, float, float32)
WINOGRAD(4, float, float32)
#ifdef __AVX512BF16__
WINOGRAD(2, bfloat16, bfloat16)
WINOGRAD(3, bfloat16, bfloat16)
#endif
