// The compiled path of a training step, behind a plain C interface (cytosae/sae/ops/native/__init__.py calls it).
//
// Matrices are latent-major [n_latents, d], float32. Selection works in two stages: products of 8-bit integers propose, with a
// margin for their rounding, and float32 decides. Every token and every latent row is computed by one thread in a fixed order,
// so the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define CYTOSAE_VNNI 1
#else
#define CYTOSAE_VNNI 0
#endif

namespace {

constexpr int64_t kLanes = 16, kPanel = 64, kTile = 192, kGroup = 6, kChunk = 64;
// Rounding errors of a sum of d products are nearly normal; so many standard deviations are allowed for.
constexpr float kSigmas = 6.0f;
const float kRootTwelve = std::sqrt(12.0f);

inline int64_t padded(int64_t d) { return (d + 3) / 4 * 4; }
inline int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

float dot(const float* a, const float* b, int64_t d) {
  // sixteen partial sums whatever the vector width, so that every build adds in the same order
  float s[kLanes] = {0};
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) s[j] += a[i + j] * b[i + j];
  for (int64_t j = 0; i < d; ++i, ++j) s[j] += a[i] * b[i];
  for (int64_t w = kLanes / 2; w; w /= 2)
    for (int64_t j = 0; j < w; ++j) s[j] += s[j + w];
  return s[0];
}

// One latent row as unsigned bytes (value + 128) in its place of the packed matrix [panel][d/4][latent of panel][4].
void pack_row(const float* row, int64_t d, int64_t latent, uint8_t* packed, float* scale, float* norm) {
  float top = 0, square = 0;
  for (int64_t i = 0; i < d; ++i) {
    top = std::max(top, std::fabs(row[i]));
    square += row[i] * row[i];
  }
  scale[latent] = top / 127;
  norm[latent] = std::sqrt(square);
  const float inverse = top > 0 ? 127 / top : 0;
  const int64_t dp = padded(d);
  uint8_t* place = packed + latent / kPanel * kPanel * dp + latent % kPanel * 4;
  for (int64_t i = 0; i < dp; i += 4) {
    uint8_t four[4];
    for (int64_t j = 0; j < 4; ++j)
      four[j] = static_cast<uint8_t>(128 + (i + j < d ? static_cast<int>(std::nearbyint(row[i + j] * inverse)) : 0));
    std::memcpy(place + i * kPanel, four, 4);
  }
}

struct Candidate {
  int32_t latent;
  float upper;  // the value is at most this
};

// Tokens of one tile in bytes, and what their rounding allows for.
struct Tile {
  std::vector<int8_t> bytes;
  std::vector<float> scale, shift_margin, scale_margin;
  std::vector<int32_t> correction;
};

struct Problem {
  const float *x, *E, *b, *threshold;
  const uint8_t* packed;
  const float *scale, *norm;
  int64_t n, d, m, k;
  int kind;  // 0 all above bound; 1 the k largest of a token; 2 above a threshold for each latent
};

void quantise(const Problem& p, const int64_t* rows, int64_t count, Tile& t) {
  const int64_t dp = padded(p.d), groups = (count + kGroup - 1) / kGroup * kGroup;
  t.bytes.assign(groups * dp, 0);
  t.scale.assign(groups, 0);
  t.shift_margin.assign(groups, 0);
  t.scale_margin.assign(groups, 0);
  t.correction.assign(groups, 0);
  for (int64_t r = 0; r < count; ++r) {
    const float* x = p.x + rows[r] * p.d;
    float top = 0, square = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      top = std::max(top, std::fabs(x[i]));
      square += x[i] * x[i];
    }
    const float inverse = top > 0 ? 127 / top : 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      const int q = static_cast<int>(std::nearbyint(x[i] * inverse));
      t.bytes[r * dp + i] = static_cast<int8_t>(q);
      sum += q;
    }
    t.scale[r] = top / 127;
    t.correction[r] = 128 * sum;
    t.shift_margin[r] = kSigmas * t.scale[r] / kRootTwelve;        // times the norm of the latent
    t.scale_margin[r] = kSigmas * std::sqrt(square) / kRootTwelve;  // times the scale of the latent
  }
}

#if CYTOSAE_VNNI
// Sums of products of kGroup tokens with the 64 latents of a panel; all of them stay in registers.
inline void products(const int8_t* x, const uint8_t* panel, int64_t dp, __m512i (&out)[kGroup][4]) {
  __m512i sum[kGroup][4];
#pragma GCC unroll 6
  for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[r][j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < dp; i += 4) {
    __m512i e[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) e[j] = _mm512_loadu_si512(panel + i * kPanel + j * 64);
#pragma GCC unroll 6
    for (int r = 0; r < kGroup; ++r) {
      int32_t four;
      std::memcpy(&four, x + r * dp + i, 4);
      const __m512i v = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], e[j], v);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kGroup; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) out[r][j] = sum[r][j];
}
#endif

// When a list of candidates of `topk` is full: keep what can still be among the k largest, and raise the bound.
void raise(std::vector<Candidate>& list, int64_t k, float spread, float& bound) {
  std::nth_element(list.begin(), list.begin() + (k - 1), list.end(),
                   [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
  bound = std::max(bound, list[k - 1].upper - spread);
  list.erase(std::remove_if(list.begin(), list.end(), [&](const Candidate& c) { return c.upper < bound; }), list.end());
}

// Candidates of some tokens: all latents whose value can be at least the token's bound.
void screen(const Problem& p, const int64_t* rows, int64_t count, float* bound, float widest_norm, float widest_scale,
            std::vector<std::vector<Candidate>>& lists) {
#if CYTOSAE_VNNI
  Tile t;
  quantise(p, rows, count, t);
  const int64_t dp = padded(p.d), full = p.kind == 1 ? std::max<int64_t>(4 * p.k, 256) : 0;
  for (int64_t s0 = 0; s0 < p.m; s0 += kPanel) {
    const uint8_t* panel = p.packed + s0 * dp;
    __m512 scale[4], norm[4], bias[4], least[4];
    __mmask16 inside[4];
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t left = std::clamp<int64_t>(p.m - s0 - j * kLanes, 0, kLanes);
      inside[j] = static_cast<__mmask16>((1u << left) - 1);
      const int64_t at = s0 + j * kLanes;
      scale[j] = _mm512_maskz_loadu_ps(inside[j], p.scale + at);
      norm[j] = _mm512_maskz_loadu_ps(inside[j], p.norm + at);
      bias[j] = _mm512_maskz_loadu_ps(inside[j], p.b + at);
      least[j] = p.kind == 2 ? _mm512_maskz_loadu_ps(inside[j], p.threshold + at) : _mm512_setzero_ps();
    }
    for (int64_t r0 = 0; r0 < count; r0 += kGroup) {
      __m512i sum[kGroup][4];
      products(t.bytes.data() + r0 * dp, panel, dp, sum);
      for (int64_t r = r0; r < std::min(count, r0 + kGroup); ++r) {
        const __m512 xs = _mm512_set1_ps(t.scale[r]), by_norm = _mm512_set1_ps(t.shift_margin[r]),
                     by_scale = _mm512_set1_ps(t.scale_margin[r]);
        const __m512i correction = _mm512_set1_epi32(t.correction[r]);
        for (int64_t j = 0; j < 4; ++j) {
          const __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r - r0][j], correction));
          const __m512 inner = _mm512_fmadd_ps(scale[j], _mm512_fmadd_ps(value, xs, by_scale), bias[j]);
          const __m512 upper = _mm512_fmadd_ps(by_norm, norm[j], inner);
          const __m512 wanted = p.kind == 2 ? least[j] : _mm512_set1_ps(bound[r]);
          const __mmask16 hit = _mm512_mask_cmp_ps_mask(inside[j], upper, wanted, _CMP_GE_OQ);
          if (!hit) continue;
          float uppers[kLanes];
          _mm512_storeu_ps(uppers, upper);
          for (unsigned bits = hit; bits; bits &= bits - 1) {
            const int lane = __builtin_ctz(bits);
            lists[r].push_back({static_cast<int32_t>(s0 + j * kLanes + lane), uppers[lane]});
          }
          if (full && static_cast<int64_t>(lists[r].size()) > full)
            raise(lists[r], p.k, 2 * (t.shift_margin[r] * widest_norm + t.scale_margin[r] * widest_scale), bound[r]);
        }
      }
    }
  }
#endif
}

struct Code {
  float value;
  int32_t latent;
};

struct Selection {
  std::vector<std::vector<Code>> rows;
};

bool larger(const Code& a, const Code& b) { return a.value > b.value || (a.value == b.value && a.latent < b.latent); }

// float32 decides about the candidates of one token; false where the bound was too high for `topk`.
bool decide(const Problem& p, int64_t row, const std::vector<Candidate>& list, float bound, std::vector<Code>& out) {
  const float* x = p.x + row * p.d;
  out.clear();
  for (const Candidate& c : list) {
    const float value = dot(x, p.E + c.latent * p.d, p.d) + p.b[c.latent];
    const float least = p.kind == 2 ? p.threshold[c.latent] : 0.0f;
    if (value > least && value > 0) out.push_back({value, c.latent});
  }
  if (p.kind != 1) return true;
  const bool enough = static_cast<int64_t>(out.size()) >= p.k;
  if (enough) {
    std::nth_element(out.begin(), out.begin() + (p.k - 1), out.end(), larger);
    const bool proven = out[p.k - 1].value >= bound;
    out.resize(p.k);
    std::sort(out.begin(), out.end(), [](const Code& a, const Code& b) { return a.latent < b.latent; });
    return proven || bound <= 0;
  }
  return bound <= 0;
}

void select_rows(const Problem& p, float bound, Selection& s, int threads) {
  const float widest_norm = p.m ? *std::max_element(p.norm, p.norm + p.m) : 0;
  const float widest_scale = p.m ? *std::max_element(p.scale, p.scale + p.m) : 0;
  const int64_t tiles = (p.n + kTile - 1) / kTile;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    std::vector<int64_t> rows;
    for (int64_t r = tile * kTile; r < std::min(p.n, (tile + 1) * kTile); ++r) rows.push_back(r);
    for (float least = bound; !rows.empty(); least = 0) {  // the second time from zero, for tokens whose bound was too high
      std::vector<std::vector<Candidate>> lists(rows.size());
      std::vector<float> bounds(rows.size(), least);
      screen(p, rows.data(), rows.size(), bounds.data(), widest_norm, widest_scale, lists);
      std::vector<int64_t> again;
      for (size_t r = 0; r < rows.size(); ++r)
        if (!decide(p, rows[r], lists[r], std::min(least, bounds[r]), s.rows[rows[r]])) again.push_back(rows[r]);
      rows.swap(again);
      if (least <= 0) break;
    }
  }
}

struct Term {
  std::vector<int64_t> start;  // by latent
  std::vector<int32_t> token;
  std::vector<float> value;
};

// Codes by latent instead of by token; within a latent the tokens ascend.
Term by_latent(int64_t n, int64_t m, const int64_t* row_start, const int32_t* latent, const float* value) {
  Term t;
  const int64_t size = row_start[n];
  t.start.assign(m + 1, 0);
  t.token.resize(size);
  t.value.resize(size);
  for (int64_t i = 0; i < size; ++i) ++t.start[latent[i] + 1];
  for (int64_t s = 0; s < m; ++s) t.start[s + 1] += t.start[s];
  std::vector<int64_t> next(t.start.begin(), t.start.end() - 1);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t i = row_start[r]; i < row_start[r + 1]; ++i) {
      const int64_t at = next[latent[i]]++;
      t.token[at] = static_cast<int32_t>(r);
      t.value[at] = value[i];
    }
  return t;
}

struct Adam {
  float lr, keep1, keep2, size1, size2, eps;  // size: 1 / (1 - beta^step)
};

inline void adam_row(float* w, const float* g, float* avg, float* square, int64_t d, const Adam& a) {
  const float rate = a.lr * a.size1;
  for (int64_t i = 0; i < d; ++i) {
    avg[i] += (1 - a.keep1) * (g[i] - avg[i]);
    square[i] = a.keep2 * square[i] + (1 - a.keep2) * g[i] * g[i];
    w[i] -= rate * avg[i] / (std::sqrt(square[i] * a.size2) + a.eps);
  }
}

}  // namespace

extern "C" {

int cytosae_has_vnni() { return CYTOSAE_VNNI; }

int64_t cytosae_packed_size(int64_t m, int64_t d) { return panels(m) * kPanel * padded(d); }

void cytosae_pack(const float* E, int64_t m, int64_t d, uint8_t* packed, float* scale, float* norm, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t s = 0; s < m; ++s) pack_row(E + s * d, d, s, packed, scale, norm);
}

// Select codes; gives a handle, and in `count` how many there are. kind 0 relu, 1 topk, 2 threshold, 3 batchtopk.
// `bound`: a value below which no code is expected (topk, batchtopk), verified; comes back as the least value taken.
void* cytosae_select(const float* x, int64_t n, int64_t d, const float* E, const float* b, int64_t m, const uint8_t* packed,
                     const float* scale, const float* norm, int kind, int64_t k, const float* threshold, float* bound,
                     int64_t* count, int threads) {
  auto* s = new Selection{std::vector<std::vector<Code>>(n)};
  Problem p{x, E, b, threshold, packed, scale, norm, n, d, m, k, kind == 3 ? 0 : kind};
  if (kind != 3) {
    select_rows(p, kind == 1 ? *bound : 0.0f, *s, threads);
    if (kind == 1) {
      std::vector<float> least;
      for (const auto& row : s->rows) {
        float low = std::numeric_limits<float>::max();
        for (const Code& c : row) low = std::min(low, c.value);
        least.push_back(static_cast<int64_t>(row.size()) < k ? 0 : low);
      }
      if (n) {
        std::nth_element(least.begin(), least.begin() + n / 50, least.end());
        *bound = least[n / 50];
      }
    }
  } else {
    const int64_t wanted = k * n;
    for (float least = *bound;; least = least > 1e-6f ? least / 2 : 0) {
      select_rows(p, least, *s, threads);
      int64_t proven = 0;
      for (const auto& row : s->rows)
        for (const Code& c : row) proven += c.value >= least;
      if (proven >= wanted || least <= 0) break;
    }
    std::vector<float> values;
    for (const auto& row : s->rows)
      for (const Code& c : row) values.push_back(c.value);
    float cut = 0;
    if (static_cast<int64_t>(values.size()) > wanted) {
      std::nth_element(values.begin(), values.begin() + (wanted - 1), values.end(), std::greater<float>());
      cut = values[wanted - 1];
      int64_t ties = wanted;  // of equal values the lower token, then the lower latent
      for (float v : values) ties -= v > cut;
      for (auto& row : s->rows) {
        std::sort(row.begin(), row.end(), [](const Code& a, const Code& b) { return a.latent < b.latent; });
        row.erase(std::remove_if(row.begin(), row.end(),
                                 [&](const Code& c) { return c.value < cut || (c.value == cut && ties-- <= 0); }),
                  row.end());
      }
    }
    *bound = cut;
  }
  if (kind != 1)
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < n; ++r)
      std::sort(s->rows[r].begin(), s->rows[r].end(), [](const Code& a, const Code& b) { return a.latent < b.latent; });
  *count = 0;
  for (const auto& row : s->rows) *count += row.size();
  return s;
}

void cytosae_take(void* handle, int64_t* row_start, int32_t* latent, float* value) {
  auto* s = static_cast<Selection*>(handle);
  int64_t at = 0;
  row_start[0] = 0;
  for (size_t r = 0; r < s->rows.size(); ++r) {
    for (const Code& c : s->rows[r]) {
      latent[at] = c.latent;
      value[at++] = c.value;
    }
    row_start[r + 1] = at;
  }
  delete s;
}

// y [groups, n, d]: group j sums the codes of latents below bounds[j].
void cytosae_decode(const int64_t* row_start, const int32_t* latent, const float* value, int64_t n, const float* D, int64_t d,
                    const int64_t* bounds, int64_t groups, float* y, int threads) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
  for (int64_t r = 0; r < n; ++r) {
    int64_t i = row_start[r];
    for (int64_t g = 0; g < groups; ++g) {
      float* out = y + (g * n + r) * d;
      if (g)
        std::memcpy(out, y + ((g - 1) * n + r) * d, d * sizeof(float));
      else
        std::memset(out, 0, d * sizeof(float));
      for (; i < row_start[r + 1] && latent[i] < bounds[g]; ++i) {
        const float *row = D + latent[i] * d, v = value[i];
        for (int64_t j = 0; j < d; ++j) out[j] += v * row[j];
      }
    }
  }
}

// One Adam step on all rows; see Path.update. `carry` [d]: sum of gb[s] E[s], E as it was.
void cytosae_update(float* E, float* D, float* b, float* E_avg, float* E_square, float* D_avg, float* D_square, float* b_avg,
                    float* b_square, int64_t m, int64_t d, const float* x, int64_t n, int64_t n_terms,
                    const int64_t* const* row_starts, const int32_t* const* latents, const float* const* values,
                    const float* const* g_ys, const int64_t* const* all_bounds, const int64_t* n_groups, const float* l1s,
                    const int64_t* extra_of, const float* extra_E, const float* extra_D, const float* extra_b,
                    const float* adam_numbers, int normalise, uint8_t* packed, float* scale, float* norm, float* carry,
                    int threads) {
  const Adam a{adam_numbers[0], adam_numbers[1], adam_numbers[2], adam_numbers[3], adam_numbers[4], adam_numbers[5]};
  std::vector<Term> terms;
  for (int64_t t = 0; t < n_terms; ++t) terms.push_back(by_latent(n, m, row_starts[t], latents[t], values[t]));
  const int64_t chunks = (m + kChunk - 1) / kChunk;
  std::vector<float> carries(chunks * d, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> gE(d), gD(d);
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      float* mine = carries.data() + chunk * d;
      for (int64_t s = chunk * kChunk; s < std::min(m, (chunk + 1) * kChunk); ++s) {
        float *e = E + s * d, *w = D + s * d, gb = 0;
        std::fill(gE.begin(), gE.end(), 0.0f);
        std::fill(gD.begin(), gD.end(), 0.0f);
        for (int64_t t = 0; t < n_terms; ++t) {
          int64_t group = 0;
          while (group + 1 < n_groups[t] && s >= all_bounds[t][group]) ++group;
          const float* g_y = g_ys[t] + group * n * d;
          for (int64_t i = terms[t].start[s]; i < terms[t].start[s + 1]; ++i) {
            const int64_t row = terms[t].token[i];
            const float *g = g_y + row * d, *xr = x + row * d, v = terms[t].value[i];
            if (i + 1 < terms[t].start[s + 1]) {
              const char* next = reinterpret_cast<const char*>(g_y + int64_t(terms[t].token[i + 1]) * d);
              const char* next_x = reinterpret_cast<const char*>(x + int64_t(terms[t].token[i + 1]) * d);
              for (int64_t byte = 0; byte < d * 4; byte += 64) {
                __builtin_prefetch(next + byte);
                __builtin_prefetch(next_x + byte);
              }
            }
            const float gc = dot(g, w, d) + l1s[t];
            for (int64_t j = 0; j < d; ++j) {
              gD[j] += v * g[j];
              gE[j] += gc * xr[j];
            }
            gb += gc;
          }
        }
        if (extra_of && extra_of[s] >= 0) {
          const int64_t at = extra_of[s];
          for (int64_t j = 0; j < d; ++j) {
            gE[j] += extra_E[at * d + j];
            gD[j] += extra_D[at * d + j];
          }
          gb += extra_b[at];
        }
        if (gb != 0)
          for (int64_t j = 0; j < d; ++j) mine[j] += gb * e[j];
        const float along = dot(gD.data(), w, d);
        for (int64_t j = 0; j < d; ++j) gD[j] -= along * w[j];
        adam_row(e, gE.data(), E_avg + s * d, E_square + s * d, d, a);
        adam_row(w, gD.data(), D_avg + s * d, D_square + s * d, d, a);
        adam_row(b + s, &gb, b_avg + s, b_square + s, 1, a);
        if (normalise) {
          const float length = std::max(std::sqrt(dot(w, w, d)), 1e-12f);
          for (int64_t j = 0; j < d; ++j) w[j] /= length;
        }
        if (packed) pack_row(e, d, s, packed, scale, norm);
      }
    }
  }
  std::fill(carry, carry + d, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < d; ++j) carry[j] += carries[chunk * d + j];
}

}  // extern "C"
