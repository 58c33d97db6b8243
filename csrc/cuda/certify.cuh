// Candidates of the largest pre-activations by products in float16, with the bound of their error that bounds.h proves;
// then the float32 chains of those that may be among them. The bits are those of encode.cuh.
//
// float16 rounds eight times finer than bfloat16, but its range is narrow: each row of x and of w is multiplied by a
// power of two that brings its largest number to [2^14, 2^15), and products are multiplied by the inverses. This is
// exact, and what then lies below the normal numbers becomes 0, so that nothing depends on denormal operands; what is
// lost is measured with the rest.
//
// A row's list holds (high, low, latent): low <= score(z) <= high. The limit is the k-th largest low so far, which the
// high of others has to pass. A chain that is made gives (z, score(z)) instead, so low == score(z) says that it is.
// Rows whose bounds could overflow, or don't tell the latents apart, go the float32 way afterwards.
#pragma once
#include "bounds.h"
#include "cuda/encode.cuh"

#define FASTAE_REAL_IS_float 1
#define FASTAE_REAL_IS_double 0
#define FASTAE_REAL_NAMED(name) FASTAE_REAL_IS_##name
#define FASTAE_REAL_IS(name) FASTAE_REAL_NAMED(name)
#if FASTAE_REAL_IS(FASTAE_REAL)

namespace fastae {

constexpr int kFallback = -2;        // held, of a row that goes the float32 way
constexpr int kFinishThreads = 128;  // of a block that makes a row's chains: a warp has 32 of them

// A float16 that is normal or 0.
FASTAE_INLINE float widened(uint16_t half) {
  const uint32_t size = half & 0x7fffu;
  return same_bits<float>((uint32_t)(half & 0x8000u) << 16 | (size ? (size << 13) + (112u << 23) : 0));
}

template <class V> FASTAE_INLINE V warp_sum(V x) {
  for (int h = 16; h; h /= 2) x += __shfl_xor_sync(0xffffffffu, x, h);
  return x;
}

// A row in float16: sums of squares of what was rounded and of what was lost, what undoes the scaling, and whether all
// numbers are finite.
struct RoundedRow {
  float squares, residual, back;
  bool finite;
};

template <bool Whole, class F>
FASTAE_INLINE void each_of_row(const float* row, int64_t p, int64_t from, int64_t to, const F& f) {
#pragma unroll 4
  for (int64_t j = from + threadIdx.x % 32 * 4; j < to; j += 128)
    f(j, load_four(row + j, Whole, (int)smaller<int64_t>(4, p - j)));
}
// f(j, numbers j to j + 3) over [0, n) by the lanes of a warp, zeros from p on; n is a multiple of four.
template <class F> FASTAE_INLINE void each_of_row(const float* row, int64_t p, int64_t n, const F& f) {
  const int64_t whole = aligned(row) ? p / 4 * 4 : 0;
  each_of_row<true>(row, p, 0, whole, f);
  each_of_row<false>(row, p, whole, n, f);
}

// By a warp, zeros behind the row up to depth.
FASTAE_INLINE RoundedRow round_row(const float* row, int64_t p, int64_t depth, uint16_t* out) {
  uint32_t most = 0;  // in the order of the magnitudes, those that are not finite last
  each_of_row(row, p, depth, [&](int64_t, const Four& a) {
#pragma unroll
    for (int e = 0; e < 4; ++e) most = larger(most, same_bits<uint32_t>(a.v[e]) & 0x7fffffffu);
  });
  for (int h = 16; h; h /= 2) most = larger(most, __shfl_xor_sync(0xffffffffu, most, h));
  // not further than the product of two such factors is normal
  const int exponent = larger(-60, (int)(most >> 23) - 127 - 14);
  const float scale = same_bits<float>((uint32_t)(127 - exponent) << 23);
  RoundedRow r = {0, 0, same_bits<float>((uint32_t)(127 + exponent) << 23), most < 0x7f800000u};
  each_of_row(row, p, depth, [&](int64_t j, const Four& a) {
    uint64_t halves = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      uint32_t u = same_bits<uint32_t>(a.v[e] * scale);
      u = (u + 0xfffu + (u >> 13 & 1u)) & ~0x1fffu;
      if ((u & 0x7fffffffu) < 113u << 23) u = 0;
      const float lost = a.v[e] - same_bits<float>(u) * r.back;
      const uint32_t half = u ? (u >> 16 & 0x8000u) | ((u - (112u << 23)) >> 13 & 0x7fffu) : 0;
      r.squares = fmaf(a.v[e], a.v[e], r.squares);
      r.residual = fmaf(lost, lost, r.residual);
      halves |= (uint64_t)half << 16 * e;
    }
    *(uint64_t*)(out + j) = halves;
  });
  r.squares = warp_sum(r.squares);
  r.residual = warp_sum(r.residual);
  return r;
}

// Memory of a warp for 32 columns of 32 rows of w, and of x in the last row. Not in a template, whose every instance
// would have its own. Rows are four numbers apart in the banks.
typedef float WarpTile[33][36];
FASTAE_INLINE WarpTile& warp_tile() {
  alignas(16) __shared__ WarpTile tile[kSelectThreads / 32];
  return tile[threadIdx.x / 32];
}

// Rows of w in float16 (n to a multiple of 64, depth), then their norms, errors and what undoes their scaling.
struct Packed {
  uint16_t* rows;
  float *norm, *error, *back;
  int64_t p, depth;
  FASTAE_INLINE Packed(void* at, int64_t n, int64_t columns)
      : rows((uint16_t*)at), p(columns), depth(ceil_div(p, 64) * 64) {
    const int64_t all = ceil_div(n, 64) * 64;
    norm = (float*)(rows + all * depth);
    error = norm + all;
    back = error + all;
  }
  FASTAE_INLINE void make(const View<T>& w, int64_t first, int64_t n) const {
    const Bounds bounds(p);
    each_warp(n, [&](int64_t i) {
      const RoundedRow r = round_row(w.at(first + i, 0), p, depth, rows + i * depth);
      if (threadIdx.x % 32) return;
      const float size = bounds.norm(r.squares, p), rest = bounds.norm(r.residual, p);
      norm[i] = size;
      error[i] = (rest + bounds.g2 * (size + rest)) * bounds.more;
      back[i] = r.back;
    });
  }
};

FASTAE_KERNEL(pack_encoder, kThreads) {
  const View<T> w = o.real(at_pack_encoder::s_w);
  Packed(o.slot[at_pack_encoder::s_packed].p, w.rows, w.columns).make(w, 0, w.rows);
}

// Behind the arrays of Encode. extra[3]: 1 where w is packed for the whole run.
struct Certify : Encode {
  float *low, *row_a, *row_size, *row_back;
  uint16_t* halves;
  int32_t *rows, *n_rows;  // those that go the float32 way
  Packed packed;
  T* gathered;  // their numbers
  int64_t depth;

  FASTAE_INLINE explicit Certify(const Launch& launch) : Encode(launch), packed(nullptr, 0, p) {
    depth = packed.depth;
    Carve c = rest;
    low = c.take<float>(o.m * room);
    row_a = c.take<float>(o.m);
    row_size = c.take<float>(o.m);
    row_back = c.take<float>(o.m);
    halves = c.take<uint16_t>(o.m * depth);
    rows = c.take<int32_t>(o.m);
    n_rows = c.take<int32_t>(1);
    gathered = ragged() ? nullptr : c.take<T>(o.m * p);
    if (o.extra[3]) {
      packed = Packed(o.slot[at_encode::s_packed].p, n, p);
      packed.norm += first, packed.error += first, packed.back += first;
    } else {
      packed = Packed(c.p, chunk, p);
    }
  }
  FASTAE_INLINE List bounds_of(int64_t r) const { return {list + r * room, low + r * room, latents + r * room}; }
  FASTAE_INLINE int most() const { return (int)(8 * k + 512); }  // entries before a list is cut
  FASTAE_INLINE T score(T value) const { return magnitude ? fabs(Vec<T>(value)).v : value; }

  // s and its bound for column c of the chunk; false where they could overflow.
  FASTAE_INLINE bool bound(int64_t r, int64_t c, float tiny, float* s, float* width) const {
    return bound(z[r * chunk + c], row_a[r], row_size[r], row_back[r], packed.norm[c], packed.error[c], packed.back[c],
                 b ? b[first + c] : 0.0f, tiny, s, width);
  }
  FASTAE_INLINE bool bound(float product, float a, float row, float row_back, float size, float error, float back,
                           float bias, float tiny, float* s, float* width) const {
    const float far = bias < 0 ? -bias : bias;
    *s = score(fmaf(product, row_back * back, bias));
    *width = fmaf(a, size, fmaf(row, error, far * 0x1p-21f + tiny));
    return row * size < kSafeSize && size < kSafeSize && far < kSafeSize;
  }

  // The limit becomes the k-th largest low, and what cannot reach it goes.
  FASTAE_INLINE int drop(const List& own, int n, Key* least) const {
    if (n <= k) return n;
    const Key kth = kth_key(n, (int)k, [&](int i) { return key_of(own.low[i]); }).key;
    *least = larger(*least, kth);
    const Key limit = *least;
    return keep(own, n, 0, [&](T v, T) { return key_of(score(v)) >= limit; }, [](T, T) { return false; });
  }

  // The largest norm, error and bias of the chunk's columns, by a block; infinity where a bound could overflow.
  struct Largest {
    float size, error, far;
  };
  FASTAE_INLINE Largest largest_of_chunk() const {
    __shared__ Largest part[kSelectThreads / 32];
    const auto join = [](Largest* all, const Largest& other) {
      all->size = larger(all->size, other.size);
      all->error = larger(all->error, other.error);
      all->far = larger(all->far, other.far);
    };
    Largest all = {0, 0, 0};
    for (int64_t c = threadIdx.x; c < columns(); c += blockDim.x) {
      const float bias = b ? b[first + c] : 0.0f, far = bias < 0 ? -bias : bias, size = packed.norm[c];
      const bool fine = size < kSafeSize && far < kSafeSize;
      join(&all, fine ? Largest{size, packed.error[c], far} : Largest{Format<float>::inf, 0, 0});
    }
    for (int h = 16; h; h /= 2)
      join(&all, {__shfl_xor_sync(0xffffffffu, all.size, h), __shfl_xor_sync(0xffffffffu, all.error, h),
                  __shfl_xor_sync(0xffffffffu, all.far, h)});
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = all;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / 32; ++i) join(&all, part[i]);
    return all;
  }

  // Which of the columns c + 128 t + 4 lane + e of a row's chunk may pass its limit: bit 4 t + e. whole: all of them are
  // there, and lie as Four does. wide: no bound of the row is wider.
  FASTAE_INLINE unsigned marked(int64_t r, int64_t c, bool whole, float limit, float wide) const {
    const int64_t own = c + threadIdx.x % 32 * 4;
    const float row = row_back[r];
    const auto passes = [&](float product, float back, float bias) {
      return (unsigned)!(score(fmaf(product, row * back, bias)) + wide <= limit);
    };
    unsigned on = 0;
    if (whole) {
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t j = own + 128 * t;
        const Four product = *(const Four*)(z + r * chunk + j), backs = *(const Four*)(packed.back + j);
        const Four bias = b ? *(const Four*)(b + first + j) : Four{};
#pragma unroll
        for (int e = 0; e < 4; ++e) on |= passes(product.v[e], backs.v[e], bias.v[e]) << (4 * t + e);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < 4 * kStrips; ++i) {
        const int64_t j = own + 128 * (i / 4) + i % 4;
        if (j < columns()) on |= passes(z[r * chunk + j], packed.back[j], b ? b[first + j] : 0.0f) << i;
      }
    }
    return on;
  }

  // Of four columns that are marked, those that pass by their own bounds, with s and width. Most rows have one in most
  // strips: loads go side by side.
  FASTAE_INLINE unsigned undecided(int64_t r, int64_t c, bool whole, unsigned few, Key least, float tiny, float (&s)[4],
                                   float (&width)[4]) const {
    if (whole) {
      const Four product = *(const Four*)(z + r * chunk + c), bias = b ? *(const Four*)(b + first + c) : Four{};
      const Four size = *(const Four*)(packed.norm + c), error = *(const Four*)(packed.error + c);
      const Four back = *(const Four*)(packed.back + c);
      const float a = row_a[r], row = row_size[r], row_scale = row_back[r];
#pragma unroll
      for (int e = 0; e < 4; ++e)
        bound(product.v[e], a, row, row_scale, size.v[e], error.v[e], back.v[e], bias.v[e], tiny, s + e, width + e);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (few >> e & 1) bound(r, c + e, tiny, s + e, width + e);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (few >> e & 1 && key_of(s[e] + width[e]) <= least) few &= ~(1u << e);
    return few;
  }

  // The chunk's part of rows top, top + 1, ..., a warp each. A list that is full is cut by the block.
  FASTAE_INLINE void filter(int64_t top) const {
    __shared__ int n_of[kSelectThreads / 32];
    __shared__ Key least_of[kSelectThreads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t r = smaller(top + warp, o.m - 1);
    const bool mine = top + warp < o.m && held[r] >= 0;
    const bool whole = aligned(z + r * chunk) && aligned(packed.back) && aligned(b ? b + first : nullptr);
    const float tiny = Bounds(p).tiny;
    const Largest most_of = largest_of_chunk();
    const float wide = fmaf(row_a[r], most_of.size, fmaf(row_size[r], most_of.error, most_of.far * 0x1p-21f + tiny));
    const bool safe = row_size[r] * most_of.size < kSafeSize;
    int n_held = mine ? held[r] : 0;
    Key least = limit[r];
    int c = mine && safe ? 0 : (int)chunk;
    for (bool again = true; again;) {
      const float limit_now = least ? number_of(least) : -Format<float>::inf;
      for (; c < columns() && n_held >= 0 && n_held <= most(); c += 128 * kStrips) {
        const bool all_there = whole && c + 128 * kStrips <= columns();
        const unsigned on = marked(r, c, all_there, limit_now, wide);
        if (!__any_sync(0xffffffffu, on != 0)) continue;
#pragma unroll 1
        for (int t = 0; t < kStrips; ++t) {
          unsigned few = on >> (4 * t) & 15;
          if (!__any_sync(0xffffffffu, few != 0)) continue;
          const int64_t own = c + 128 * t + 4 * lane;
          float s[4], width[4];
          few = undecided(r, own, all_there, few, least, tiny, s, width);
          int place = n_held;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const unsigned mask = __ballot_sync(0xffffffffu, few >> e & 1);
            place += __popc(mask & ((1u << lane) - 1));
            n_held += __popc(mask);
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (!(few >> e & 1)) continue;
            list[r * room + place] = s[e] + width[e];
            low[r * room + place] = s[e] - width[e];
            latents[r * room + place++] = (int32_t)(first + own + e);
          }
        }
      }
      if (lane == 0) n_of[warp] = n_held, least_of[warp] = least;
      __syncthreads();
      again = false;
      for (int i = 0; i < warps; ++i) {
        const int n = n_of[i];
        if (n <= most()) continue;
        Key limit_now = least_of[i];
        const int left = drop(bounds_of(top + i), n, &limit_now);
        if (threadIdx.x == 0) n_of[i] = left > most() ? kFallback : left, least_of[i] = limit_now;
        again = true;
      }
      __syncthreads();
      n_held = n_of[warp], least = least_of[warp];
      __syncwarp();
    }
    if (mine && lane == 0) held[r] = safe ? n_held : kFallback, limit[r] = least;
  }

  // The chains of a row's listed latents [0, n) that wanted(i) names, a warp for 32 of them: their weights come in
  // rows and are read in columns. done(i, z)
  template <class Wanted, class Done>
  FASTAE_INLINE void chains(int64_t r, int n, const Wanted& wanted, const Done& done) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % 8 * 4;
    WarpTile& own = warp_tile();
    const T* const row = x.at(r, 0);
    const int32_t* const name = latents + r * room;
    const bool whole = p % 4 == 0 && w.ld % 4 == 0 && aligned(w.p);
    __syncthreads();
    for (int first = warp * 32; first < n; first += blockDim.x) {
      const int i = first + lane;
      const bool mine = i < n && wanted(i);
      const unsigned all = __ballot_sync(0xffffffffu, mine);
      if (!all) continue;
      const int32_t j = mine ? name[i] : 0;
      // an eighth of a warp loads a row's 32 columns, those of the next round while this one's are multiplied
      int32_t from[8];
      Four next[8];
      float next_x;
#pragma unroll
      for (int q = 0; q < 8; ++q) {
        const int of = q * 4 + lane / 8;
        const int32_t named = __shfl_sync(0xffffffffu, j, of);
        from[q] = all >> of & 1 ? named : -1;
        next[q] = {};
      }
      const auto fetch = [&](int64_t c) {
        next_x = c + lane < p ? row[c + lane] : 0.0f;
        if (whole && c + 32 <= p) {
#pragma unroll
          for (int q = 0; q < 8; ++q)
            if (from[q] >= 0) next[q] = *(const Four*)w.at(from[q], c + part);
        } else {
#pragma unroll
          for (int q = 0; q < 8; ++q)
            if (from[q] >= 0)
              next[q] = load_four(w.at(from[q], c + part), false, (int)smaller<int64_t>(4, p - c - part));
        }
      };
      float sum = 0;
      fetch(0);
      for (int64_t c = 0; c < p; c += 32) {
        __syncwarp();
        own[32][lane] = next_x;
#pragma unroll
        for (int q = 0; q < 8; ++q) *(Four*)&own[q * 4 + lane / 8][part] = next[q];
        __syncwarp();
        if (c + 32 < p) fetch(c + 32);
        if (!mine) continue;
        if (c + 32 <= p) {
#pragma unroll
          for (int d = 0; d < 32; d += 4) {
            const Four u = *(const Four*)&own[32][d], v = *(const Four*)&own[lane][d];
#pragma unroll
            for (int e = 0; e < 4; ++e) sum = fmaf(u.v[e], v.v[e], sum);
          }
        } else {
          for (int d = 0; d < (int)(p - c); ++d) sum = fmaf(own[32][d], own[lane][d], sum);
        }
      }
      if (mine) done(i, b ? sum + b[j] : sum);
    }
    __syncthreads();
  }

  FASTAE_INLINE void finish_row(int64_t r) const {
    int n_held = held[r];
    if (n_held < 0) {
      if (threadIdx.x == 0) count(r, 0) = -1;
      return;
    }
    Key least = limit[r];
    const List own = bounds_of(r);
    const auto exact = [&](int i, T value) { own.z[i] = value, own.low[i] = score(value); };
    n_held = drop(own, n_held, &least);
    if (n_held > k + 32) {  // the k largest bounds' chains first: these raise the limit by twice the bounds' width
      const Key kth = kth_key(n_held, (int)k, [&](int i) { return key_of(own.z[i]); }).key;
      chains(r, n_held, [&](int i) { return key_of(own.z[i]) >= kth; }, exact);
      n_held = drop(own, n_held, &least);
    }
    chains(r, n_held, [&](int i) { return own.low[i] != score(own.z[i]); }, exact);
    n_held = keep_largest(own, n_held, (int)k, magnitude, &least);
    for (int i = threadIdx.x; i < n_held; i += blockDim.x) write(r, i, own.latent[i], own.z[i]);
    if (threadIdx.x == 0) count(r, 0) = n_held;
  }

  // A threshold code's part of a chunk: what may be an entry, its chain, and if it is one its place in the row.
  FASTAE_INLINE void emit_chunk(int64_t r) const {
    int n_held = held[r];
    if (n_held < 0) return;
    const List own = bounds_of(r);
    const float tiny = Bounds(p).tiny;
    for (int64_t c0 = 0; c0 < columns(); c0 += kStrips * blockDim.x) {
      const int64_t some = columns() - c0;
      const int strips = strips_of(some);
      unsigned on = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t c = (int64_t)t * blockDim.x + threadIdx.x;
        if (t >= strips || c >= some) continue;
        float s, width;
        const bool safe = bound(r, c0 + c, tiny, &s, &width);
        on |= (unsigned)(!safe || s + width > limit_at((int32_t)(first + c0 + c))) << t;
      }
      const int n_here = each_marked(on, strips, [&](int t, int rank) {
        own.latent[rank] = (int32_t)(first + c0 + (int64_t)t * blockDim.x + threadIdx.x);
      });
      if (!n_here) continue;
      chains(r, n_here, [](int) { return true; }, [&](int i, T value) { own.z[i] = value; });
      on = 0;
      const int shares = strips_of(n_here);
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int i = t * blockDim.x + threadIdx.x;
        if (t < shares && i < n_here) on |= (unsigned)(own.z[i] > limit_at(own.latent[i])) << t;
      }
      n_held += each_marked(on, shares, [&](int t, int rank) {
        const int i = t * blockDim.x + threadIdx.x;
        emit(r, n_held + rank, own.latent[i], own.z[i]);
      });
    }
    __syncthreads();
    if (threadIdx.x == 0) held[r] = n_held;
  }
};

}  // namespace fastae
#endif
