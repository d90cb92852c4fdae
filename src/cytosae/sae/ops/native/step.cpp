// The compiled path of a training step, behind a plain C interface (cytosae/sae/ops/native/__init__.py calls it), and the codes
// of tokens pooled by cell (cytosae/concepts/_pool.py).
//
// Matrices are latent-major [n_latents, d], float32. Selection works in two stages: products of small integers propose, with a
// margin for their rounding, and float32 decides. The integers have 8 bits where the processor multiplies those (AMX tiles, or
// VNNI vectors: the same sums, to the last bit), and about 11 bits in 16 elsewhere (AVX2). Where no code may be lost, tiles
// multiply bfloat16 numbers instead, whose margin is ten times smaller at twice the price. Every token and every latent row is
// computed by one thread in a fixed order, so the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define CYTOSAE_BITS 8
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define CYTOSAE_BITS 16
#else
#define CYTOSAE_BITS 0
#endif
#if CYTOSAE_BITS == 8 && defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define CYTOSAE_AMX 1
#else
#define CYTOSAE_AMX 0
#endif

namespace {

constexpr int64_t kSums = 64, kChunk = 64, kAhead = 4;
// Rounding errors of a sum of d products are nearly normal; so many standard deviations are allowed for (8 bits, in training).
constexpr float kSigmas = 6.0f;
const float kRootTwelve = std::sqrt(12.0f);

// Numbers below 1e-38 are zeros for this thread as long as this lives. The averages of a latent that gets no gradient sink there
// within 800 steps and stay, and arithmetic with them is many times slower. Beside Adam's epsilon they move no weight.
class NoDenormals {
 public:
#if CYTOSAE_BITS && !defined(CYTOSAE_KEEP_DENORMALS)
  NoDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~NoDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  NoDenormals() {}
#endif
};

#if CYTOSAE_BITS == 8
using Whole = int8_t;      // of a token
using Packed = uint8_t;    // of a latent: 128 more than the value
using Floats = __m512;
using Ints = __m512i;
constexpr int64_t kLanes = 16, kVectors = CYTOSAE_AMX ? 2 : 4, kStep = 4;
constexpr int kShift = 128;
inline float largest(int64_t) { return 127; }
inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints load(const Packed* p) { return _mm512_loadu_si512(p); }
inline Ints repeat(int32_t four) { return _mm512_set1_epi32(four); }
inline Ints add_products(Ints sum, Ints latents, Ints token) { return _mm512_dpbusd_epi32(sum, latents, token); }
inline Ints less(Ints a, int32_t b) { return _mm512_sub_epi32(a, _mm512_set1_epi32(b)); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats repeat(float v) { return _mm512_set1_ps(v); }
inline Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline unsigned at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
#elif CYTOSAE_BITS == 16
using Whole = int16_t;
using Packed = int16_t;
using Floats = __m256;
using Ints = __m256i;
constexpr int64_t kLanes = 8, kVectors = 2, kStep = 2;
constexpr int kShift = 0;
inline float largest(int64_t d) { return std::min(32767.0f, std::floor(std::sqrt(2147483000.0f / static_cast<float>(d)))); }
inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Ints load(const Packed* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Ints repeat(int32_t two) { return _mm256_set1_epi32(two); }
inline Ints add_products(Ints sum, Ints latents, Ints token) { return _mm256_add_epi32(sum, _mm256_madd_epi16(latents, token)); }
inline Ints less(Ints a, int32_t) { return a; }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats repeat(float v) { return _mm256_set1_ps(v); }
inline Floats times_plus(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline unsigned at_least(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
#else
using Whole = int16_t;
using Packed = int16_t;
constexpr int64_t kLanes = 8, kVectors = 2, kStep = 2;
constexpr int kShift = 0;
inline float largest(int64_t) { return 127; }
#endif
constexpr int64_t kPanel = kLanes * kVectors;

constexpr int64_t kDepth = CYTOSAE_AMX ? 64 : kStep;  // dimensions are padded to a multiple of it

inline int64_t up_to(int64_t multiple, int64_t n) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t padded(int64_t d) { return up_to(kDepth, d); }
inline int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// A sum of products in 64 partial sums whatever the vector width, so that every build adds in the same order.
inline float dot(const float* a, const float* b, int64_t d) {
  alignas(64) float s[kSums] = {0};
  int64_t i = 0;
#if CYTOSAE_BITS
  constexpr int kParts = kSums / kLanes;
  Floats sum[kParts];
  for (int j = 0; j < kParts; ++j) sum[j] = repeat(0.0f);
  for (; i + kSums <= d; i += kSums)
#pragma GCC unroll 8
    for (int j = 0; j < kParts; ++j) sum[j] = times_plus(load(a + i + j * kLanes), load(b + i + j * kLanes), sum[j]);
#pragma GCC unroll 8
  for (int j = 0; j < kParts; ++j) store(s + j * kLanes, sum[j]);
#else
  for (; i + kSums <= d; i += kSums)
    for (int64_t j = 0; j < kSums; ++j) s[j] += a[i + j] * b[i + j];
#endif
  for (int64_t j = 0; i < d; ++i, ++j) s[j] += a[i] * b[i];
#pragma GCC unroll 6
  for (int64_t w = kSums / 2; w; w /= 2)
    for (int64_t j = 0; j < w; ++j) s[j] += s[j + w];
  return s[0];
}

inline void fetch(const float* row, int64_t d) {
  for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(row + i);
}

// One latent row as integers in its place of the packed matrix [panel][d/kStep][latent of panel][kStep].
void pack_row(const float* row, int64_t d, int64_t latent, Packed* packed, float* scale, float* norm) {
  float top = 0, square = 0;
  for (int64_t i = 0; i < d; ++i) {
    top = std::max(top, std::fabs(row[i]));
    square += row[i] * row[i];
  }
  const float most = largest(d), inverse = top > 0 ? most / top : 0;
  scale[latent] = top / most;
  norm[latent] = std::sqrt(square);
  const int64_t dp = padded(d);
  Packed* place = packed + latent / kPanel * kPanel * dp + latent % kPanel * kStep;
  for (int64_t i = 0; i < dp; i += kStep) {
    Packed some[kStep];
    for (int64_t j = 0; j < kStep; ++j)
      some[j] = static_cast<Packed>(kShift + (i + j < d ? static_cast<int>(std::nearbyint(row[i + j] * inverse)) : 0));
    std::memcpy(place + i * kPanel, some, sizeof some);
  }
}

struct Candidate {
  int32_t latent;
  float upper;  // the value is at most this; once it is computed, the value itself
};

// Tokens of one tile as integers (or in bfloat16), and what their rounding allows for.
template <class By>
struct Tile {
  std::vector<typename By::Token> whole;
  std::vector<float> scale, shift_margin, scale_margin;
  std::vector<int32_t> correction;
};

struct Problem {
  const float *x, *E, *b, *threshold;
  const void* packed;
  const float *scale, *norm;
  int64_t n, d, m, k;
  int kind;     // 0 all above bound; 1 the k largest of a token; 2 above a threshold for each latent
  bool proven;  // no code can be lost; else only as good as never (kSigmas)
};

constexpr float kTiny = 1e-12f;  // largest number of a token below which it is taken as 0

#if CYTOSAE_BITS
// Sums of products of kRows tokens with the latents of a panel, by vectors; all of them stay in registers.
struct ByVectors {
  using Token = Whole;
  using Row = Packed;
  using Sums = Ints;
  static constexpr int64_t kRows = 6, kTile = 192;
  static int64_t place(int64_t r, int64_t i, int64_t dp) { return r * dp + i; }
  template <class Between>
  static void products(const Whole* x, const Packed* panel, int64_t dp, Ints (&out)[kRows][kVectors], Between&& between) {
    between(0, kRows);
    Ints sum[kRows][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[r][j] = no_ints();
    for (int64_t i = 0; i < dp; i += kStep) {
      Ints e[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) e[j] = load(panel + i * kPanel + j * kLanes * kStep);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        int32_t some;
        std::memcpy(&some, x + r * dp + i, sizeof some);
        const Ints v = repeat(some);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[r][j] = add_products(sum[r][j], e[j], v);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) out[r][j] = sum[r][j];
  }
};

#if CYTOSAE_AMX
// Whether the system lets this process use the tiles; asked once.
bool tiles_allowed() {
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return allowed;
}

struct alignas(64) TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {0};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The shapes of tiles, as long as it lives; other libraries of this process (oneDNN) have shapes of their own.
class Shaped {
 public:
  Shaped() {
    const TileShape shape;
    _tile_storeconfig(&before_);
    _tile_loadconfig(&shape);
  }
  ~Shaped() {
    _tile_release();
    if (before_.palette) _tile_loadconfig(&before_);
  }
  Shaped(const Shaped&) = delete;
  Shaped& operator=(const Shaped&) = delete;

 private:
  TileShape before_;
};

// Products by tiles: two of tokens (16 each) times two of latents (16 each), 64 bytes of each at a time. What is to be done with
// earlier sums is strewn between the products, so that vectors and tiles are busy at once.
template <class T, class R, class S>
struct Tiles : Shaped {
  using Token = T;
  using Row = R;
  using Sums = S;
  static constexpr int64_t kRows = 32, kTile = 1024, kDeep = 64 / sizeof(T), kPiece = kStep / sizeof(T);
  static int64_t place(int64_t r, int64_t i, int64_t dp) {
    return r / kRows * kRows * dp + i / kDeep * kRows * kDeep + r % kRows * kDeep + i % kDeep;
  }
  template <class Between>
  static void products(const Token* x, const Row* panel, int64_t dp, Sums (&out)[kRows][kVectors], Between&& between) {
    static_assert(kVectors == 2 && kStep * kPanel == 128, "two tiles of latents lie side by side");
    asm volatile("" ::: "memory");  // the compiler does not know that tiles read memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const int64_t share = (kRows * kDeep + dp - 1) / dp;
    int64_t done = 0;
    for (int64_t i = 0; i < dp; i += kDeep) {
      _tile_loadd(4, x + i * kRows, 64);
      _tile_loadd(6, panel + i * kPanel, 128);
      _tile_loadd(7, panel + i * kPanel + kLanes * kPiece, 128);
      if constexpr (sizeof(T) == 1) {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_loadd(5, x + i * kRows + 16 * kDeep, 64);
      if constexpr (sizeof(T) == 1) {
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
      } else {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      const int64_t end = std::min(kRows, done + share);
      between(done, end);
      done = end;
    }
    _tile_stored(0, &out[0][0], sizeof out[0]);
    _tile_stored(1, &out[0][1], sizeof out[0]);
    _tile_stored(2, &out[16][0], sizeof out[0]);
    _tile_stored(3, &out[16][1], sizeof out[0]);
  }
};
using ByTiles = Tiles<Whole, Packed, Ints>;
using ByHalves = Tiles<uint16_t, uint16_t, Floats>;  // bfloat16

inline uint16_t half(float v) {  // to the nearest, of ties the even one
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float whole(uint16_t v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float back;
  std::memcpy(&back, &bits, sizeof back);
  return back;
}

// One latent row in bfloat16; `missed` is the length of what rounding took from it.
void pack_halves(const float* row, int64_t d, int64_t latent, uint16_t* packed, float* missed, float* norm) {
  float square = 0, off = 0;
  const int64_t dp = padded(d);
  uint16_t* place = packed + latent / kPanel * kPanel * dp + latent % kPanel * 2;
  for (int64_t i = 0; i < dp; i += 2)
    for (int64_t j = 0; j < 2; ++j) {
      const float v = i + j < d ? row[i + j] : 0;
      const uint16_t rounded = half(v);
      const float left = v - whole(rounded);
      square += v * v;
      off += left * left;
      place[i * kPanel + j] = rounded;
    }
  missed[latent] = std::sqrt(off);
  norm[latent] = std::sqrt(square);
}
#endif

// The first `left` of these numbers, zeros after them.
inline Floats load_some(const float* from, int64_t left) {
  if (left >= kLanes) return load(from);
  float part[kLanes] = {0};
  if (left > 0) std::memcpy(part, from, left * sizeof(float));
  return load(part);
}
#else
struct ByVectors {
  using Token = Whole;
  using Row = Packed;
  static constexpr int64_t kRows = 1, kTile = 192;
  static int64_t place(int64_t r, int64_t i, int64_t dp) { return r * dp + i; }
};
#endif

// The integer product misses x.w by at most |x - x'| |w| + |x'| |w - w'|, and every number of w - w' is at most half its scale.
template <class By>
void quantise(const Problem& p, const int64_t* rows, int64_t count, Tile<By>& t) {
  const int64_t dp = padded(p.d), groups = up_to(By::kRows, count);
  t.whole.assign(groups * dp, 0);
  t.scale.assign(groups, 0);
  t.shift_margin.assign(groups, 0);
  t.scale_margin.assign(groups, 0);
  t.correction.assign(groups, 0);
  const float most = largest(p.d);
  for (int64_t r = 0; r < count; ++r) {
    const float* x = p.x + rows[r] * p.d;
    float top = 0, square = 0, missed = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      top = std::max(top, std::fabs(x[i]));
      square += x[i] * x[i];
    }
    const bool tiny = top < kTiny;  // its squares are no float32 numbers: taken as 0, and wholly in the margin
    const float inverse = tiny ? 0 : most / top, scale = tiny ? 0 : top / most;
    int32_t sum = 0;
    for (int64_t i = 0; i < p.d; ++i) {
      const int q = static_cast<int>(std::nearbyint(x[i] * inverse));
      const float off = x[i] - scale * static_cast<float>(q);
      t.whole[By::place(r, i, dp)] = static_cast<Whole>(q);
      missed += off * off;
      sum += q;
    }
    t.scale[r] = scale;
    t.correction[r] = kShift * sum;
    const float d = static_cast<float>(p.d), size = tiny ? top * std::sqrt(d) : std::sqrt(square);
    if (tiny) {
      t.shift_margin[r] = 1.01f * size;
      t.scale_margin[r] = 0;
    } else if (p.proven) {  // the last term: float32 sums d products in whatever order
      t.shift_margin[r] = 1.01f * std::sqrt(missed) + size * (d + 8) * 1.2e-7f;  // times the norm of the latent
      t.scale_margin[r] = 1.01f * size * 0.5f * std::sqrt(d);                    // times the scale of the latent
    } else {
      t.shift_margin[r] = kSigmas * scale / kRootTwelve;
      t.scale_margin[r] = kSigmas * size / kRootTwelve;
    }
  }
}

#if CYTOSAE_AMX
// In bfloat16 the same, with both differences measured: |x - x'| |w| + |x'| |w - w'|, and the sums' own rounding.
template <>
void quantise<ByHalves>(const Problem& p, const int64_t* rows, int64_t count, Tile<ByHalves>& t) {
  const int64_t dp = padded(p.d), groups = up_to(ByHalves::kRows, count);
  t.whole.assign(groups * dp, 0);
  t.scale.assign(groups, 1);
  t.shift_margin.assign(groups, 0);
  t.scale_margin.assign(groups, 0);
  t.correction.assign(groups, 0);
  const float d = static_cast<float>(p.d);
  for (int64_t r = 0; r < count; ++r) {
    const float* x = p.x + rows[r] * p.d;
    float top = 0, square = 0, missed = 0, kept = 0;
    for (int64_t i = 0; i < p.d; ++i) top = std::max(top, std::fabs(x[i]));
    const bool tiny = top < kTiny;
    for (int64_t i = 0; i < p.d; ++i) {
      const uint16_t rounded = tiny ? 0 : half(x[i]);
      const float near = whole(rounded), off = x[i] - near;
      t.whole[ByHalves::place(r, i, dp)] = rounded;
      square += x[i] * x[i];
      missed += off * off;
      kept += near * near;
    }
    const float size = tiny ? top * std::sqrt(d) : std::sqrt(square);
    t.shift_margin[r] = 1.01f * (tiny ? size : std::sqrt(missed)) + size * (d + 8) * 1.2e-7f;
    t.scale_margin[r] = 1.01f * std::sqrt(kept);
  }
}
#endif

using Bits = std::vector<int32_t>;  // of floats that are not negative, which are ordered as their bits are

inline int32_t bits_of(float v) {
  int32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

// The k-th largest by bisection: a count a step in vectors, where a partition stumbles over branches. 1 <= k <= size.
float kth_largest(const Bits& all, int64_t k) {
  int32_t least = all[0], most = all[0];
  for (int32_t v : all) least = std::min(least, v), most = std::max(most, v);
  int64_t low = least, high = int64_t(most) + 1;  // at least k are >= low, fewer than k are >= high
  while (high - low > 1) {
    const int32_t middle = static_cast<int32_t>(low + (high - low) / 2);
    int32_t count = 0;
    for (int32_t v : all) count += v >= middle;
    if (count == k) {
      int32_t next = std::numeric_limits<int32_t>::max();
      for (int32_t v : all) next = v >= middle ? std::min(next, v) : next;
      low = next;
      break;
    }
    (count > k ? low : high) = middle;
  }
  const int32_t found = static_cast<int32_t>(low);
  float v;
  std::memcpy(&v, &found, sizeof v);
  return v;
}

// When a list of candidates of `topk` is long: keep what can still be among the k largest, and raise the bound. Order is kept.
void raise(std::vector<Candidate>& list, int64_t k, float spread, float& bound, Bits& room) {
  room.resize(list.size());
  for (size_t i = 0; i < list.size(); ++i) room[i] = bits_of(list[i].upper);
  bound = std::max(bound, kth_largest(room, k) - spread);
  size_t kept = 0;
  for (const Candidate c : list) {
    list[kept] = c;
    kept += c.upper >= bound;
  }
  list.resize(kept);
}

// Candidates of some tokens: all latents whose value can be at least the token's bound.
template <class By>
void screen(const Problem& p, const int64_t* rows, int64_t count, float* bound, float widest_norm, float widest_scale,
            std::vector<std::vector<Candidate>>& lists, Tile<By>& t) {
#if CYTOSAE_BITS
  constexpr int64_t kGroup = By::kRows;
  const By by;
  quantise<By>(p, rows, count, t);
  const int64_t dp = padded(p.d), few = std::max<int64_t>(3 * p.k, 128);
  std::vector<int64_t> full(count, few);  // length of a list at which it is looked through
  Bits room;
  const auto spread = [&](int64_t r) { return 2 * (t.shift_margin[r] * widest_norm + t.scale_margin[r] * widest_scale); };
  // Takes up the candidates among the latents of a panel.
  const auto note = [&](int64_t r, int64_t s0, const Floats* upper, const unsigned* hit) {
    for (int64_t j = 0; j < kVectors; ++j) {
      float uppers[kLanes];
      store(uppers, upper[j]);
      for (unsigned bits = hit[j]; bits; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        lists[r].push_back({static_cast<int32_t>(s0 + j * kLanes + lane), uppers[lane]});
      }
    }
    if (p.kind == 1 && static_cast<int64_t>(lists[r].size()) > full[r]) {
      raise(lists[r], p.k, spread(r), bound[r], room);
      full[r] = std::max<int64_t>(few, 2 * lists[r].size());
    }
  };
  for (int64_t s0 = 0; s0 < p.m; s0 += kPanel) {
    const auto* panel = static_cast<const typename By::Row*>(p.packed) + s0 * dp;
    Floats scale[kVectors], norm[kVectors], bias[kVectors], least[kVectors];
    unsigned inside[kVectors];
    for (int64_t j = 0; j < kVectors; ++j) {
      const int64_t at = s0 + j * kLanes, left = std::clamp<int64_t>(p.m - at, 0, kLanes);
      inside[j] = (1u << left) - 1;
      scale[j] = load_some(p.scale + at, left);
      norm[j] = load_some(p.norm + at, left);
      bias[j] = load_some(p.b + at, left);
      least[j] = p.kind == 2 ? load_some(p.threshold + at, left) : repeat(0.0f);
    }
    typename By::Sums sums[2][kGroup][kVectors];
    // Looks through the sums of some tokens, from one to another of a group, for candidates.
    const auto look = [&, own = p.kind == 2](int64_t group, int64_t from, int64_t to) {
      const auto& sum = sums[group / kGroup % 2];
      const float *xs = t.scale.data() + group, *by_norm = t.shift_margin.data() + group;
      const float *by_scale = t.scale_margin.data() + group, *bounds = bound + group;
      const int32_t* correction = t.correction.data() + group;
      for (int64_t i = from; i < std::min(to, count - group); ++i) {
        Floats upper[kVectors];
        unsigned hit[kVectors], any = 0;
#pragma GCC unroll 4
        for (int64_t j = 0; j < kVectors; ++j) {
          Floats inner;
          if constexpr (std::is_same_v<typename By::Sums, Ints>) {
            const Floats value = to_floats(less(sum[i][j], correction[i]));
            inner = times_plus(scale[j], times_plus(value, repeat(xs[i]), repeat(by_scale[i])), bias[j]);
          } else {
            inner = times_plus(scale[j], repeat(by_scale[i]), sum[i][j] + bias[j]);
          }
          upper[j] = times_plus(repeat(by_norm[i]), norm[j], inner);
          hit[j] = inside[j] & at_least(upper[j], own ? least[j] : repeat(bounds[i]));
          any |= hit[j];
        }
        if (any) note(group + i, s0, upper, hit);
      }
    };
    int64_t before = -1;  // the group whose sums are still to be looked through
    for (int64_t r0 = 0; r0 < count; r0 += kGroup) {
      by.products(t.whole.data() + r0 * dp, panel, dp, sums[r0 / kGroup % 2], [&](int64_t from, int64_t to) {
        if (before >= 0) look(before, from, to);
      });
      before = r0;
    }
    look(before, 0, kGroup);
  }
  if (p.kind == 1)
    for (int64_t r = 0; r < count; ++r)
      if (static_cast<int64_t>(lists[r].size()) > p.k) raise(lists[r], p.k, spread(r), bound[r], room);
#endif
}

struct Code {
  float value;
  int32_t latent;
};

// What is above `cut`, and of what equals it the first `ties`, which are counted down.
void keep_largest(std::vector<Code>& row, float cut, int64_t& ties) {
  size_t kept = 0;
  for (const Code c : row) {
    row[kept] = c;
    kept += c.value > cut || (c.value == cut && ties > 0);
    ties -= c.value == cut;
  }
  row.resize(kept);
}

struct Selection {
  std::vector<std::vector<Code>> rows;
  int64_t candidates = 0, misjudged = 0;  // proposed; and of those on the wrong side of the threshold by integers alone
};

// The values of all candidates of a tile. Where a latent is proposed by several tokens its row is fetched once for all of them:
// rows come from memory, and there are more of them than caches hold.
template <class By>
void evaluate(const Problem& p, const int64_t* rows, std::vector<std::vector<Candidate>>& lists, const Tile<By>& t,
              int64_t& misjudged) {
  const auto settle = [&](int64_t r, Candidate& c) {
    const float value = dot(p.x + rows[r] * p.d, p.E + c.latent * p.d, p.d) + p.b[c.latent];
    const float least = p.kind == 2 ? p.threshold[c.latent] : 0.0f;
    const float nearly = c.upper - t.shift_margin[r] * p.norm[c.latent] - t.scale_margin[r] * p.scale[c.latent];
    misjudged += (value > least && value > 0) != (nearly > std::max(least, 0.0f));
    c.upper = value;
  };
  const int64_t count = lists.size();
  int64_t size = 0;
  for (const auto& list : lists) size += list.size();
  if (size < p.m / 4) {
    for (int64_t r = 0; r < count; ++r)
      for (size_t i = 0; i < lists[r].size(); ++i) {
        if (i + kAhead < lists[r].size()) fetch(p.E + lists[r][i + kAhead].latent * p.d, p.d);
        settle(r, lists[r][i]);
      }
    return;
  }
  struct Place {
    int32_t row, at;
  };
  std::vector<int64_t> start(p.m + 2, 0);
  std::vector<Place> places(size);
  for (const auto& list : lists)
    for (const Candidate& c : list) ++start[c.latent + 2];
  for (int64_t s = 0; s < p.m; ++s) start[s + 2] += start[s + 1];
  for (int64_t r = 0; r < count; ++r)
    for (size_t i = 0; i < lists[r].size(); ++i)
      places[start[lists[r][i].latent + 1]++] = {static_cast<int32_t>(r), static_cast<int32_t>(i)};
  for (int64_t s = 0; s < p.m; ++s) {
    if (s + 2 < p.m && start[s + 3] > start[s + 2]) fetch(p.E + (s + 2) * p.d, p.d);
    for (int64_t i = start[s]; i < start[s + 1]; ++i) {
      if (i + 2 * kAhead < size) __builtin_prefetch(&lists[places[i + 2 * kAhead].row][places[i + 2 * kAhead].at]);
      if (i + kAhead < size) fetch(p.x + rows[places[i + kAhead].row] * p.d, p.d);
      settle(places[i].row, lists[places[i].row][places[i].at]);
    }
  }
}

// The codes among the candidates of one token, in the order of the latents; false where the bound was too high for `topk`.
bool decide(const Problem& p, const std::vector<Candidate>& list, float bound, std::vector<Code>& out, Bits& room) {
  out.resize(list.size());
  size_t n = 0;
  for (const Candidate& c : list) {
    out[n] = {c.upper, c.latent};
    n += c.upper > (p.kind == 2 ? p.threshold[c.latent] : 0.0f) && c.upper > 0;
  }
  out.resize(n);
  if (p.kind != 1 || static_cast<int64_t>(n) < p.k) return p.kind != 1 || bound <= 0;
  room.resize(out.size());
  for (size_t i = 0; i < out.size(); ++i) room[i] = bits_of(out[i].value);
  const float cut = kth_largest(room, p.k);
  int64_t ties = p.k;  // of equal values the lower latent
  for (const Code& c : out) ties -= c.value > cut;
  keep_largest(out, cut, ties);
  return cut >= bound || bound <= 0;
}

template <class By>
void select_by(const Problem& p, float bound, Selection& s, int threads) {
  // as many tiles for each thread, none longer than kTile
  const int64_t tile_count = std::max<int64_t>(1, up_to(threads, (p.n + By::kTile - 1) / By::kTile));
  const int64_t kTile = std::max(By::kRows, up_to(By::kRows, (p.n + tile_count - 1) / tile_count));
  const float widest_norm = p.m ? *std::max_element(p.norm, p.norm + p.m) : 0;
  const float widest_scale = p.m ? *std::max_element(p.scale, p.scale + p.m) : 0;
  const int64_t tiles = (p.n + kTile - 1) / kTile;
  int64_t candidates = 0, misjudged = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : candidates, misjudged)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    std::vector<int64_t> rows;
    Bits room;
    for (int64_t r = tile * kTile; r < std::min(p.n, (tile + 1) * kTile); ++r) rows.push_back(r);
    for (float least = bound; !rows.empty(); least = 0) {  // the second time from zero, for tokens whose bound was too high
      std::vector<std::vector<Candidate>> lists(rows.size());
      std::vector<float> bounds(rows.size(), least);
      Tile<By> t;
      screen<By>(p, rows.data(), rows.size(), bounds.data(), widest_norm, widest_scale, lists, t);
      evaluate<By>(p, rows.data(), lists, t, misjudged);
      std::vector<int64_t> again;
      for (size_t r = 0; r < rows.size(); ++r) {
        candidates += lists[r].size();
        if (!decide(p, lists[r], std::min(least, bounds[r]), s.rows[rows[r]], room)) again.push_back(rows[r]);
      }
      rows.swap(again);
      if (least <= 0) break;
    }
  }
  s.candidates += candidates;
  s.misjudged += misjudged;
}

void select_rows(const Problem& p, float bound, bool halves, Selection& s, int threads) {
#if CYTOSAE_AMX
  if (halves) return select_by<ByHalves>(p, bound, s, threads);
  if (tiles_allowed()) return select_by<ByTiles>(p, bound, s, threads);
#else
  (void)halves;
#endif
  select_by<ByVectors>(p, bound, s, threads);
}

// What the tokens of a cell say of a latent.
struct Pooled {
  int32_t latent, patch, n_active;
  float top;
  double total;
};

struct PooledCells {
  std::vector<std::vector<Pooled>> cells;
  std::vector<std::vector<int32_t>> above;  // [entry][threshold] of each cell
};

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

// Bits of the integers this build multiplies; 0 where the processor has neither VNNI nor AVX2.
int cytosae_bits() { return CYTOSAE_BITS; }

// Whether they are multiplied by AMX tiles.
int cytosae_tiles() {
#if CYTOSAE_AMX
  return tiles_allowed();
#else
  return 0;
#endif
}

// In bytes; `halves`: in bfloat16, for tiles.
int64_t cytosae_packed_size(int64_t m, int64_t d, int halves) {
  return panels(m) * kPanel * padded(d) * (halves ? 2 : sizeof(Packed));
}

void cytosae_pack(const float* E, int64_t m, int64_t d, int halves, void* packed, float* scale, float* norm, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t s = 0; s < m; ++s) {
#if CYTOSAE_AMX
    if (halves) {
      pack_halves(E + s * d, d, s, static_cast<uint16_t*>(packed), scale, norm);
      continue;
    }
#endif
    pack_row(E + s * d, d, s, static_cast<Packed*>(packed), scale, norm);
  }
}

// Select codes; gives a handle, and in `count` how many there are. kind 0 relu, 1 topk, 2 threshold, 3 batchtopk.
// `bound`: a value below which no code is expected (topk, batchtopk), verified; comes back as the least value taken.
// `counts`: codes, candidates, candidates on the wrong side of their threshold by integers alone.
void* cytosae_select(const float* x, int64_t n, int64_t d, const float* E, const float* b, int64_t m, const void* packed,
                     const float* scale, const float* norm, int halves, int kind, int64_t k, const float* threshold, int proven, float* bound,
                     int64_t* counts, int threads) {
  auto* s = new Selection{std::vector<std::vector<Code>>(n)};
  Problem p{x, E, b, threshold, packed, scale, norm, n, d, m, k, kind == 3 ? 0 : kind, proven != 0};
  if (kind != 3) {
    select_rows(p, kind == 1 ? *bound : 0.0f, halves, *s, threads);
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
      select_rows(p, least, halves, *s, threads);
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
        keep_largest(row, cut, ties);
      }
    }
    *bound = cut;
  }
  counts[0] = 0;
  for (const auto& row : s->rows) counts[0] += row.size();
  counts[1] = s->candidates;
  counts[2] = s->misjudged;
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

// Pools the codes of cells whose tokens lie together: gives a handle, and in `size` how many (cell, latent) have a code. A cell's
// sum is made in the order of its tokens; of equal codes the first token is kept.
void* cytosae_pool(const int64_t* row_start, const int32_t* latent, const float* value, int64_t n_cells, int64_t n_tokens,
                   int64_t m, const float* thresholds, int64_t n_thresholds, int64_t* size, int threads) {
  auto* p = new PooledCells{std::vector<std::vector<Pooled>>(n_cells), std::vector<std::vector<int32_t>>(n_cells)};
#pragma omp parallel num_threads(threads)
  {
    std::vector<int32_t> place(m, -1);
    size_t likely = 0;  // as many as the cell before had
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < n_cells; ++c) {
      auto& found = p->cells[c];
      found.reserve(likely);
      auto& above = p->above[c];
      for (int64_t r = c * n_tokens; r < (c + 1) * n_tokens; ++r)
        for (int64_t i = row_start[r]; i < row_start[r + 1]; ++i) {
          const int32_t l = latent[i], patch = static_cast<int32_t>(r - c * n_tokens);
          const float v = value[i];
          if (place[l] < 0) {
            place[l] = static_cast<int32_t>(found.size());
            found.push_back({l, patch, 0, v, 0.0});
            above.resize(above.size() + n_thresholds, 0);
          }
          Pooled& one = found[place[l]];
          if (v > one.top) one.top = v, one.patch = patch;
          one.total += v;
          ++one.n_active;
          for (int64_t t = 0; t < n_thresholds; ++t) above[place[l] * n_thresholds + t] += v > thresholds[t];
        }
      for (const Pooled& one : found) place[one.latent] = -1;
      likely = found.size();
    }
  }
  *size = 0;
  for (const auto& found : p->cells) *size += found.size();
  return p;
}

// The entries by latent, then cell; `above` [n_thresholds, size].
void cytosae_take_pooled(void* handle, int64_t m, int64_t n_thresholds, int64_t size, int32_t* cell, int32_t* latent, float* top,
                         int32_t* patch, double* total, int32_t* n_active, int32_t* above, int threads) {
  auto* p = static_cast<PooledCells*>(handle);
  const int64_t n_cells = p->cells.size(), blocks = std::clamp<int64_t>(n_cells, 1, threads), block = (n_cells + blocks - 1) / blocks;
  std::vector<std::vector<int64_t>> next(blocks, std::vector<int64_t>(m, 0));  // where a block of cells writes, by latent
  const auto entries = [&](int64_t b, auto&& each) {
    for (int64_t c = b * block; c < std::min(n_cells, (b + 1) * block); ++c)
      for (size_t i = 0; i < p->cells[c].size(); ++i) each(c, i, p->cells[c][i]);
  };
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t b = 0; b < blocks; ++b) entries(b, [&](int64_t, size_t, const Pooled& one) { ++next[b][one.latent]; });
  int64_t before = 0;
  for (int64_t l = 0; l < m; ++l)
    for (int64_t b = 0; b < blocks; ++b) before += std::exchange(next[b][l], before);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t b = 0; b < blocks; ++b)
    entries(b, [&](int64_t c, size_t i, const Pooled& one) {
      const int64_t at = next[b][one.latent]++;
      cell[at] = static_cast<int32_t>(c);
      latent[at] = one.latent;
      top[at] = one.top;
      patch[at] = one.patch;
      total[at] = one.total;
      n_active[at] = one.n_active;
      for (int64_t t = 0; t < n_thresholds; ++t) above[t * size + at] = p->above[c][i * n_thresholds + t];
    });
  delete p;
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
                    const float* adam_numbers, int normalise, Packed* packed, float* scale, float* norm, float* carry,
                    int threads) {
  const Adam a{adam_numbers[0], adam_numbers[1], adam_numbers[2], adam_numbers[3], adam_numbers[4], adam_numbers[5]};
  std::vector<Term> terms;
  for (int64_t t = 0; t < n_terms; ++t) terms.push_back(by_latent(n, m, row_starts[t], latents[t], values[t]));
  const int64_t chunks = (m + kChunk - 1) / kChunk;
  std::vector<float> carries(chunks * d, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    const NoDenormals faster;
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
