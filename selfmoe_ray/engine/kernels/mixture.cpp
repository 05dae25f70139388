// A mixture's two operations on a CPU, each one call: a layer's gates, and the experts of a linear layer.
// Only experts whose gate is not zero are computed, so the work of a token grows with k and not with n.
// Plain C functions on raw pointers: no torch headers, so the library builds in seconds and fits any torch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

// Below it, waking the other threads costs more than they save.
constexpr int64_t kTokensForThreads = 8;
// Tokens that share what the cache holds of an expert before the next part of the layer takes its place.
constexpr int64_t kBlock = 16;
// Outputs whose part of an expert's B stays in the innermost cache while a block's tokens use it.
constexpr int64_t kTile = 1024;
// Tokens with the same experts that are computed together: so many share what is loaded of an expert.
constexpr int kGroup = 4;
// Tokens that are put in order together.
constexpr int64_t kWindow = 256;

struct BFloat16 {
  uint16_t bits;
};

inline void store(float* to, float value) { *to = value; }

inline void store(BFloat16* to, float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  const bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
  // To nearest, ties to even.
  to->bits = is_nan ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

}  // namespace

// The experts of a linear layer that computes `parts` products of one input.
struct Experts {
  const void* a;             // [parts, experts, rank, inputs]
  const void* b;             // [experts, rank / 2, outputs, 2]: rows of B^T in pairs, scaled by alpha / r
  const int64_t* part_ends;  // [parts]: where each part's outputs end
  int64_t parts, experts, rank, inputs, outputs;
};

// A layer's router. Each row of `logits` may be the same row of `before`.
struct Router {
  const float* theta;    // [experts, width]
  const float* before;   // [tokens, experts], or null
  const int32_t* k;      // [tokens]
  const float* weights;  // [tokens, experts]; below zero: out of the softmax, and its gate is zero
  float* logits;         // [tokens, experts]
  float* gates;          // [tokens, experts], rows gates_stride apart
  int64_t gates_stride, experts, width;
  float alpha, beta;
};

namespace {

// Sixteen floats; the compiler makes of them what this machine's registers hold.
constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
constexpr Ints kEven = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
constexpr Ints kOdd = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Floats load(const BFloat16* from) {
  Halves values;
  std::memcpy(&values, from, sizeof values);
  return (Floats)(__builtin_convertvector(values, Words) << 16);
}

// The first `count` values, and zeros.
template <typename T>
inline Floats load(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T values[kLanes] = {};
  if (count > 0) std::memcpy(values, from, count * sizeof(T));
  return load(values);
}

// The first `count` values.
template <typename T>
inline void store(T* to, const Floats& values, int64_t count) {
  T rounded[kLanes];
  for (int i = 0; i < kLanes; ++i) store(rounded + i, values[i]);
  std::memcpy(to, rounded, std::min<int64_t>(count, kLanes) * sizeof(T));
}

// The sum of each of N vectors, in the first N lanes: they are folded together, which takes fewer steps than N sums.
template <int N, int kHalvings = 4>
inline Floats lane_sums(const Floats (&v)[N]) {
  if constexpr (kHalvings == 0) {
    return v[0];
  } else {
    Floats folded[(N + 1) / 2];
#pragma GCC unroll 8
    for (int i = 0; i < (N + 1) / 2; ++i) {
      const Floats &a = v[2 * i], &b = v[N > 1 ? 2 * i + 1 : 0];
      folded[i] = __builtin_shuffle(a, b, kEven) + __builtin_shuffle(a, b, kOdd);
    }
    return lane_sums<(N + 1) / 2, kHalvings - 1>(folded);
  }
}

template <int M, int R>
inline void store_sums(const Floats (&sums)[M * R], float* const* low, int64_t first) {
  const Floats totals = lane_sums(sums);
  for (int m = 0; m < M; ++m) std::memcpy(low[m] + first, (const float*)&totals + m * R, R * sizeof(float));
}

// low[m][first + j] = rows[first + j] . x[m] for M tokens by R rows, in registers: what is loaded of either is used
// by all of the other.
template <int M, int R, typename Row, typename T>
void dots_block(const Row* rows, const T* const* x, int64_t inputs, float* const* low, int64_t first) {
  Floats sums[M * R] = {};
  for (int64_t i = 0; i < inputs; i += kLanes) {
    Floats input[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) input[m] = load(x[m] + i, inputs - i);
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) {
      const Floats row = load(rows + (first + j) * inputs + i, inputs - i);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[m * R + j] += row * input[m];
    }
  }
  store_sums<M, R>(sums, low, first);
}

// Two neighbouring factors as `add_rows` reads them.
struct Pair {
  float first, second;
};

inline void make_pairs(const float* low, int64_t count, Pair* to, const float*) {
  for (int64_t q = 0; q < count; ++q) to[q] = {low[2 * q], low[2 * q + 1]};
}

// y[m][o] += sum over q of factors[m][q].first * rows[q][o, 0] + factors[m][q].second * rows[q][o, 1], for M tokens
// and the outputs from o to end.
template <int M, typename T>
void add_rows(const T* const* rows, const Pair* const* factors, int64_t count, int64_t o, int64_t end, T* const* y) {
  for (; o < end; o += kLanes) {
    const int64_t left = end - o;
    Floats sums[M];
    for (int m = 0; m < M; ++m) sums[m] = load(y[m] + o, left);
    for (int64_t q = 0; q < count; ++q) {
      const Floats low = load(rows[q] + 2 * o, 2 * left), high = load(rows[q] + 2 * o + kLanes, 2 * left - kLanes);
      const Floats first = __builtin_shuffle(low, high, kEven), second = __builtin_shuffle(low, high, kOdd);
      for (int m = 0; m < M; ++m) {
        sums[m] += factors[m][q].first * first;
        sums[m] += factors[m][q].second * second;
      }
    }
    for (int m = 0; m < M; ++m) store(y[m] + o, sums[m], left);
  }
}

#ifndef __AVX512BF16__

using BFloat16Pair = Pair;

inline void make_pairs(const float* low, int64_t count, Pair* to, const BFloat16*) {
  make_pairs(low, count, to, static_cast<const float*>(nullptr));
}

#else

using BFloat16Pair = int32_t;

inline void make_pairs(const float* low, int64_t count, int32_t* to, const BFloat16*) {
  for (int64_t q = 0; q < count; ++q) {
    BFloat16 pair[2];
    store(pair, low[2 * q]);
    store(pair + 1, low[2 * q + 1]);
    std::memcpy(to + q, pair, sizeof pair);
  }
}

inline __mmask32 lanes32(int64_t left) { return left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1; }

inline __m512bh load_pairs(const BFloat16* from) { return (__m512bh)_mm512_loadu_si512(from); }

inline __m512bh load_pairs(const BFloat16* from, __mmask32 mask) {
  return (__m512bh)_mm512_maskz_loadu_epi16(mask, from);
}

inline __m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

template <int M, int R>
void dots_block(const BFloat16* rows, const BFloat16* const* x, int64_t inputs, float* const* low, int64_t first) {
  Floats sums[M * R] = {};
  for (int64_t i = 0; i < inputs; i += 32) {
    const __mmask32 mask = lanes32(inputs - i);
    __m512bh input[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) input[m] = load_pairs(x[m] + i, mask);
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) {
      const __m512bh row = load_pairs(rows + (first + j) * inputs + i, mask);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[m * R + j] = _mm512_dpbf16_ps(sums[m * R + j], row, input[m]);
    }
  }
  store_sums<M, R>(sums, low, first);
}

template <int M>
void add_rows(const BFloat16* const* rows, const int32_t* const* factors, int64_t count, int64_t o, int64_t end,
              BFloat16* const* y) {
  constexpr int kBlocks = 4;
  for (; o + 16 * kBlocks <= end; o += 16 * kBlocks) {
    __m512 sums[M][kBlocks];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < kBlocks; ++j) sums[m][j] = widen(_mm256_loadu_si256((const __m256i*)(y[m] + o + 16 * j)));
    for (int64_t q = 0; q < count; ++q) {
      __m512bh row[kBlocks];
#pragma GCC unroll 4
      for (int j = 0; j < kBlocks; ++j) row[j] = load_pairs(rows[q] + 2 * (o + 16 * j));
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const __m512bh factor = (__m512bh)_mm512_set1_epi32(factors[m][q]);
#pragma GCC unroll 4
        for (int j = 0; j < kBlocks; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], row[j], factor);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < kBlocks; ++j)
        _mm256_storeu_si256((__m256i*)(y[m] + o + 16 * j), (__m256i)_mm512_cvtneps_pbh(sums[m][j]));
  }
  for (; o < end; o += 16) {
    const __mmask16 mask = end - o >= 16 ? __mmask16(-1) : __mmask16((1 << (end - o)) - 1);
    const __mmask32 pair_mask = lanes32(2 * (end - o));
    for (int m = 0; m < M; ++m) {
      __m512 sum = widen(_mm256_maskz_loadu_epi16(mask, y[m] + o));
      for (int64_t q = 0; q < count; ++q)
        sum = _mm512_dpbf16_ps(sum, load_pairs(rows[q] + 2 * o, pair_mask), (__m512bh)_mm512_set1_epi32(factors[m][q]));
      _mm256_mask_storeu_epi16(y[m] + o, mask, (__m256i)_mm512_cvtneps_pbh(sum));
    }
  }
}

#endif

// low[m][j] = rows[j] . x[m] for M tokens.
template <int M, typename Row, typename T>
void dots(const Row* rows, const T* const* x, int64_t inputs, int64_t count, float* const* low) {
  constexpr int kRows = M == 1 ? 8 : 4;
  int64_t j = 0;
  for (; j + kRows <= count; j += kRows) dots_block<M, kRows>(rows, x, inputs, low, j);
  for (; j < count; ++j) dots_block<M, 1>(rows, x, inputs, low, j);
}

template <typename T>
struct PairOf {
  using type = Pair;
};

template <>
struct PairOf<BFloat16> {
  using type = BFloat16Pair;
};

// Token rows in the order of their first gated expert, so that neighbours find its rows in the cache; window by
// window, so that what they add to lies close together.
std::vector<int64_t> by_expert(const float* gates, int64_t gates_stride, int64_t experts, int64_t tokens) {
  std::vector<int64_t> first(tokens), start(experts + 2), order(tokens);
  for (int64_t begin = 0; begin < tokens; begin += kWindow) {
    const int64_t end = std::min(begin + kWindow, tokens);
    std::fill(start.begin(), start.end(), 0);
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gates + t * gates_stride;
      first[t] = std::find_if(gate, gate + experts, [](float g) { return g != 0; }) - gate;
      ++start[first[t] + 1];
    }
    std::partial_sum(start.begin(), start.end(), start.begin());
    for (int64_t t = begin; t < end; ++t) order[begin + start[first[t]]++] = t;
  }
  return order;
}

bool same_experts(const float* gate, const float* other, int64_t experts) {
  return std::equal(gate, gate + experts, other, [](float g, float h) { return (g != 0) == (h != 0); });
}

// The experts of up to kBlock tokens, `tokens` of them, on one thread.
template <typename T>
class Block {
  using PairType = typename PairOf<T>::type;

 public:
  Block(const Experts& layer, const T* x, int64_t x_stride, const float* gates, int64_t gates_stride, T* y)
      : layer_(layer), x_(x), x_stride_(x_stride), gates_(gates), gates_stride_(gates_stride), y_(y),
        most_(layer.experts * layer.rank / 2), low_(kGroup * 2 * most_), rows_(kBlock * most_),
        factors_(kBlock * most_) {}

  void add(const int64_t* tokens, int64_t size) {
    tokens_ = tokens;
    for (int64_t i = 0; i < size; i += sizes_[i]) sizes_[i] = group_size(i, size);
    int64_t first = 0;
    for (int64_t part = 0; part < layer_.parts; ++part) {
      const int64_t width = layer_.part_ends[part] - first;
      for (int64_t i = 0; i < size; i += sizes_[i])
        counts_[i] = sizes_[i] == kGroup ? gather<kGroup>(i, part, first) : gather<1>(i, part, first);
      for (int64_t o = 0; o < width; o += kTile)
        for (int64_t i = 0; i < size; i += sizes_[i]) {
          const int64_t end = std::min(o + kTile, width);
          if (counts_[i] == 0) continue;
          sizes_[i] == kGroup ? scatter<kGroup>(i, first, o, end) : scatter<1>(i, first, o, end);
        }
      first += width;
    }
  }

 private:
  const float* gate(int64_t i) const { return gates_ + tokens_[i] * gates_stride_; }

  // Tokens from i on that are computed together: they have the same experts.
  int64_t group_size(int64_t i, int64_t size) const {
    if (i + kGroup > size) return 1;
    for (int64_t m = 1; m < kGroup; ++m)
      if (!same_experts(gate(i), gate(i + m), layer_.experts)) return 1;
    return kGroup;
  }

  // Fills in what a group adds to a part: rows of B, in pairs, and each token's factors; returns how many.
  template <int M>
  int64_t gather(int64_t i, int64_t part, int64_t first) {
    const int64_t pairs_each = layer_.rank / 2;
    const T* x[M];
    float* low[M];
    int64_t count = 0;
    for (int m = 0; m < M; ++m) x[m] = x_ + tokens_[i + m] * x_stride_;
    for (int64_t e = 0; e < layer_.experts; ++e) {
      if (gate(i)[e] == 0) continue;
      for (int m = 0; m < M; ++m) low[m] = low_.data() + 2 * (m * most_ + count);
      const T* a = static_cast<const T*>(layer_.a) + (part * layer_.experts + e) * layer_.rank * layer_.inputs;
      dots<M>(a, x, layer_.inputs, layer_.rank, low);
      for (int m = 0; m < M; ++m)
        for (int64_t j = 0; j < layer_.rank; ++j) low[m][j] *= gate(i + m)[e];
      const T* b = static_cast<const T*>(layer_.b) + 2 * (e * pairs_each * layer_.outputs + first);
      for (int64_t q = 0; q < pairs_each; ++q) rows_[i * most_ + count++] = b + 2 * q * layer_.outputs;
    }
    for (int m = 0; m < M; ++m)
      make_pairs(low_.data() + 2 * m * most_, count, &factors_[(i + m) * most_], static_cast<const T*>(nullptr));
    return count;
  }

  template <int M>
  void scatter(int64_t i, int64_t first, int64_t o, int64_t end) {
    const PairType* factors[M];
    T* y[M];
    for (int m = 0; m < M; ++m) {
      factors[m] = &factors_[(i + m) * most_];
      y[m] = y_ + tokens_[i + m] * layer_.outputs + first;
    }
    add_rows<M>(&rows_[i * most_], factors, counts_[i], o, end, y);
  }

  const Experts& layer_;
  const T* x_;
  const int64_t x_stride_;
  const float* gates_;
  const int64_t gates_stride_;
  T* y_;
  const int64_t most_;
  const int64_t* tokens_ = nullptr;
  int64_t sizes_[kBlock], counts_[kBlock];
  std::vector<float> low_;
  std::vector<const T*> rows_;
  std::vector<PairType> factors_;
};

template <typename T>
void add_experts(const Experts& layer, const T* x, int64_t x_stride, const float* gates, int64_t gates_stride, T* y,
                 int64_t tokens) {
  const std::vector<int64_t> order = by_expert(gates, gates_stride, layer.experts, tokens);
#pragma omp parallel if (tokens >= kTokensForThreads)
  {
    Block<T> block(layer, x, x_stride, gates, gates_stride, y);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < tokens; begin += kBlock)
      block.add(order.data() + begin, std::min(kBlock, tokens - begin));
  }
}

// The k largest of p keep their value, of equals the first; the others get their constant weight.
void select(const float* p, int64_t experts, int64_t k, const float* weights, float* gates) {
  for (int64_t e = 0; e < experts; ++e) gates[e] = std::max(weights[e], 0.f);
  float bound = INFINITY;
  int64_t at_bound = 0;
  for (int64_t chosen = 0; chosen < std::min(k, experts); ++chosen) {
    // After the last chosen one: smaller, or equal and further right.
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      const bool is_left = p[e] < bound || (p[e] == bound && e > at_bound);
      if (is_left && (best < 0 || p[e] > p[best])) best = e;
    }
    if (best < 0) return;
    bound = p[best];
    at_bound = best;
    gates[best] = p[best];
  }
}

// The gates of M tokens from `first` on; `p` has room for their probabilities.
template <int M, typename T>
void route_group(const Router& router, const T* hidden, int64_t hidden_stride, int64_t first, float* p) {
  const int64_t experts = router.experts;
  const T* x[M];
  float* products[M];
  for (int m = 0; m < M; ++m) {
    x[m] = hidden + (first + m) * hidden_stride;
    products[m] = p + m * experts;
  }
  dots<M>(router.theta, x, router.width, experts, products);
  for (int64_t t = first; t < first + M; ++t, p += experts) {
    float* logits = router.logits + t * experts;
    const float* before = router.before ? router.before + t * experts : nullptr;
    const float* weights = router.weights + t * experts;
    float largest = -INFINITY, sum = 0;
    for (int64_t e = 0; e < experts; ++e) {
      logits[e] = router.alpha * p[e] + (before ? router.beta * before[e] : 0);
      if (weights[e] >= 0) largest = std::max(largest, logits[e]);
    }
    for (int64_t e = 0; e < experts; ++e) sum += p[e] = weights[e] < 0 ? 0 : std::exp(logits[e] - largest);
    for (int64_t e = 0; e < experts; ++e) p[e] /= sum;
    select(p, experts, router.k[t], weights, router.gates + t * router.gates_stride);
  }
}

template <typename T>
void route(const Router& router, const T* hidden, int64_t hidden_stride, int64_t tokens) {
#pragma omp parallel if (tokens >= kTokensForThreads)
  {
    std::vector<float> p(kGroup * router.experts);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < tokens; first += kGroup) {
      if (first + kGroup <= tokens) {
        route_group<kGroup>(router, hidden, hidden_stride, first, p.data());
        continue;
      }
      for (int64_t t = first; t < tokens; ++t) route_group<1>(router, hidden, hidden_stride, t, p.data());
    }
  }
}

}  // namespace

#define EXPORT(SUFFIX, TYPE)                                                                                      \
  extern "C" void add_experts_##SUFFIX(const Experts* layer, const TYPE* x, int64_t x_stride, const float* gates, \
                                       int64_t gates_stride, TYPE* y, int64_t tokens) {                           \
    add_experts<TYPE>(*layer, x, x_stride, gates, gates_stride, y, tokens);                                       \
  }                                                                                                               \
  extern "C" void route_##SUFFIX(const Router* router, const TYPE* hidden, int64_t hidden_stride, int64_t tokens) { \
    route<TYPE>(*router, hidden, hidden_stride, tokens);                                                          \
  }

EXPORT(float32, float)
EXPORT(bfloat16, BFloat16)
