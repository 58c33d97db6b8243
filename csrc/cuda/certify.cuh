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
#include "cuda/stream.cuh"

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

// f(j, numbers j to j + 3) over [0, n) by the lanes of a warp, zeros from p on; n is a multiple of four. Loads go four
// at a time: one after f could not go before what f stores.
template <class F> FASTAE_INLINE void each_of_row(const float* row, int64_t p, int64_t n, const F& f) {
  constexpr int kAhead = 4;
  const int lane = threadIdx.x % 32 * 4;
  const int64_t whole = aligned(row) ? p / (128 * kAhead) * (128 * kAhead) : 0;
#pragma unroll 1
  for (int64_t j = lane; j < whole; j += 128 * kAhead) {
    Four a[kAhead];
#pragma unroll
    for (int t = 0; t < kAhead; ++t) a[t] = *(const Four*)(row + j + 128 * t);
#pragma unroll
    for (int t = 0; t < kAhead; ++t) f(j + 128 * t, a[t]);
  }
#pragma unroll 1
  for (int64_t j = whole + lane; j < n; j += 128)
    f(j, load_four(row + j, aligned(row) && j + 4 <= p, (int)smaller<int64_t>(4, p - j)));
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

  // What `stream` is told of a row: limits are held against the widest bound of the row, then each column's own, which
  // most strips of most rows come to.
  struct Row {
    const Certify& e;
    const float* z;
    const float* bias;
    List list;
    float a, size, back, wide, tiny;
    bool whole, safe;  // safe: no bound of the row could overflow
    static constexpr bool kBounds = true;
    struct Columns {
      Four product, back, bias;
    };
    FASTAE_INLINE Row(const Certify& certify, int64_t r)
        : e(certify), z(e.z + r * e.chunk), bias(e.b ? e.b + e.first : nullptr), list(e.bounds_of(r)) {
      const Largest most = e.largest_of_chunk();
      a = e.row_a[r], size = e.row_size[r], back = e.row_back[r], tiny = Bounds(e.p).tiny;
      wide = fmaf(a, most.size, fmaf(size, most.error, most.far * 0x1p-21f + tiny));
      whole = aligned(e.packed.back) && aligned(bias);
      safe = size * most.size < kSafeSize;
    }
    FASTAE_INLINE Columns four(int c, const Four& product) const {
      return {product, *(const Four*)(e.packed.back + c), bias ? *(const Four*)(bias + c) : Four{}};
    }
    FASTAE_INLINE Columns one(int c) const { return {{z[c]}, {e.packed.back[c]}, {bias ? bias[c] : 0.0f}}; }
    FASTAE_INLINE bool passes(const Columns& of, int q, float limit) const {
      return !(e.score(fmaf(of.product.v[q], back * of.back.v[q], of.bias.v[q])) + wide <= limit);
    }
    FASTAE_INLINE unsigned undecided(int c, bool four_there, const Four& product, unsigned few, Key least,
                                     float (&high)[4], float (&low)[4]) const {
      float s[4], width[4];
      if (four_there) {
        const Columns of = four(c, product);
        const Four norm = *(const Four*)(e.packed.norm + c), error = *(const Four*)(e.packed.error + c);
#pragma unroll
        for (int q = 0; q < 4; ++q)
          e.bound(of.product.v[q], a, size, back, norm.v[q], error.v[q], of.back.v[q], of.bias.v[q], tiny, s + q,
                  width + q);
      } else {
#pragma unroll
        for (int q = 0; q < 4; ++q)
          if (few >> q & 1)
            e.bound(z[c + q], a, size, back, e.packed.norm[c + q], e.packed.error[c + q], e.packed.back[c + q],
                    bias ? bias[c + q] : 0.0f, tiny, s + q, width + q);
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        high[q] = s[q] + width[q];
        low[q] = s[q] - width[q];
        if (few >> q & 1 && key_of(high[q]) <= least) few &= ~(1u << q);
      }
      return few;
    }
  };

  // The chunk's part of rows top, top + 1, ..., a warp each.
  FASTAE_INLINE void filter(int64_t top) const {
    const int64_t r = smaller(top + threadIdx.x / 32, o.m - 1);
    const bool mine = top + threadIdx.x / 32 < o.m && held[r] >= 0;
    const Ahead ahead(*this, r);  // on its way while the row's bounds are made
    const Row row(*this, r);
    const Held own = stream(*this, top, row, ahead, {mine ? held[r] : 0, limit[r]}, mine && row.safe,
                            [&](int64_t of, int n, Key* least) {
                              const int left = drop(bounds_of(of), n, least);
                              return left > most_listed(*this) ? kFallback : left;
                            });
    if (mine && threadIdx.x % 32 == 0) held[r] = row.safe ? own.n : kFallback, limit[r] = own.least;
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
