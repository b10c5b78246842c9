// Attention of each head: y = softmax(scale * q k^T) v, for a few queries at a time.

#include <algorithm>
#include <vector>

#include "ends.h"
#include "products.h"

// q, k, v (image, head, token, size) with the distances of images, heads and tokens; y (image, token, head, size).
// `size` is a multiple of kLanes.
extern "C" void attention_float32(const float* q, const float* k, const float* v, float* y, double scale, int64_t n,
                                  int64_t heads, int64_t queries, int64_t keys, int64_t size, int64_t qn, int64_t qh,
                                  int64_t qt, int64_t kn, int64_t kh, int64_t kt, int64_t vn, int64_t vh, int64_t vt,
                                  int threads) {
  const int64_t blocks = (keys + kOutputs - 1) / kOutputs, width = blocks * kOutputs;
#pragma omp parallel num_threads(threads)
  {
    // k^T in blocks of keys, with zeros after the last; rows of the softmax
    std::vector<float> turned(width * size), P(kRows * width);
#pragma omp for
    for (int64_t head = 0; head < n * heads; head++) {
      const float* Q = q + head / heads * qn + head % heads * qh;
      const float* K = k + head / heads * kn + head % heads * kh;
      const float* V = v + head / heads * vn + head % heads * vh;
      float* Y = y + (head / heads * queries * heads + head % heads) * size;
      for (int64_t key = 0; key < keys; key++)
        for (int64_t c = 0; c < size; c++)
          turned[(key / kOutputs * size + c) * kOutputs + key % kOutputs] = K[key * kt + c] * float(scale);
      for (int64_t first = 0; first < queries; first += kRows) {
        const int64_t count = std::min<int64_t>(kRows, queries - first);
        for (int64_t key = 0; key < keys; key += kOutputs)
          product(Q + first * qt, qt, turned.data() + key * size, kOutputs, P.data() + key, width, count, size,
                  std::min(kOutputs, keys - key));
        for (int64_t t = 0; t < count; t++) {
          float* row = P.data() + t * width;
          const int64_t end = (keys + kLanes - 1) / kLanes * kLanes;
          std::fill(row + keys, row + end, -1e30f);  // whose weight is 0
          Floats largest = load(row), sums = {};
          for (int64_t i = kLanes; i < end; i += kLanes) largest = largest < load(row + i) ? load(row + i) : largest;
          float most = largest[0], sum = 0;
          for (int64_t lane = 1; lane < kLanes; lane++) most = std::max(most, largest[lane]);
          for (int64_t i = 0; i < end; i += kLanes) {
            const Floats value = exponential(load(row + i) - most);
            store(row + i, value);
            sums += value;
          }
          for (int64_t lane = 0; lane < kLanes; lane++) sum += sums[lane];
          for (int64_t i = 0; i < end; i += kLanes) store(row + i, load(row + i) * (1.f / sum));
        }
        for (int64_t c = 0; c < size; c += kOutputs)
          product(P.data(), width, V + c, vt, Y + first * heads * size + c, heads * size, count, keys,
                  std::min(kOutputs, size - c));
      }
    }
  }
}
