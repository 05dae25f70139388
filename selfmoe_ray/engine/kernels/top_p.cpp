// Top-p filtering of logits on a CPU in a few passes over a row, without sorting the vocabulary.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

// Bins of equal width by a logit's distance from the largest; the last takes all that is further away.
constexpr int32_t kBins = 2048;
constexpr float kBinsPerUnit = 64;

// e^x for x <= 0 to about 1e-7: e^x = 2^n * e^r. In contrast to std::exp, loops over it become vector code.
inline float exp_of_negative(float x) {
  x = std::max(x, -87.0f);
  const float n = std::floor(x * 1.44269504f + 0.5f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float fraction = p * r * r + r + 1.0f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return fraction * power;
}

struct Scratch {
  std::vector<float> mass;
  std::vector<int32_t> bin;
  std::vector<double> of_bin;
  std::vector<std::pair<float, int64_t>> boundary;

  explicit Scratch(int64_t vocabulary) : mass(vocabulary), bin(vocabulary), of_bin(kBins) {}
};

// Tokens from the least likely on go, as long as their probabilities together stay within 1 - p; one token stays.
void keep_top_p(float* logits, int64_t vocabulary, double p, Scratch& scratch) {
  float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < vocabulary; ++i) largest = std::max(largest, logits[i]);
  if (!std::isfinite(largest)) return;
  float* mass = scratch.mass.data();
  int32_t* bin = scratch.bin.data();
#pragma omp simd
  for (int64_t i = 0; i < vocabulary; ++i) {
    // The smaller of the two first: a logit of -infinity is as far as can be.
    const float distance = std::min(largest - logits[i], float(kBins));
    mass[i] = exp_of_negative(-distance);
    bin[i] = int32_t(std::min(distance * kBinsPerUnit, float(kBins - 1)));
  }
  double* of_bin = scratch.of_bin.data();
  std::fill_n(of_bin, kBins, 0.0);
  for (int64_t i = 0; i < vocabulary; ++i) of_bin[bin[i]] += mass[i];
  double total = 0;
  for (int32_t b = 0; b < kBins; ++b) total += of_bin[b];

  double left = (1 - p) * total;
  int32_t last = kBins - 1;
  while (last > 0 && of_bin[last] <= left) left -= of_bin[last--];
#pragma omp simd
  for (int64_t i = 0; i < vocabulary; ++i) logits[i] = bin[i] > last ? -INFINITY : logits[i];
  auto& boundary = scratch.boundary;
  boundary.clear();
  for (int64_t i = 0; i < vocabulary; ++i)
    if (bin[i] == last) boundary.emplace_back(logits[i], i);
  std::sort(boundary.begin(), boundary.end());
  if (last == 0) boundary.pop_back();
  for (const auto& [logit, i] : boundary) {
    left -= mass[i];
    if (left < 0) break;
    logits[i] = -INFINITY;
  }
}

}  // namespace

extern "C" void keep_top_p_float32(float* logits, const float* p, int64_t vocabulary, int64_t rows) {
#pragma omp parallel if (rows > 1)
  {
    Scratch scratch(vocabulary);
#pragma omp for schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row)
      if (p[row] < 1) keep_top_p(logits + row * vocabulary, vocabulary, p[row], scratch);
  }
}
