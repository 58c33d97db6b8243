// A chunk's products read once, a warp a row: what may pass a row's limit joins its list, and a list that is full is cut
// by the block. What an entry is says a Row: of certify.cuh with bounds, or here z itself.
#pragma once
#include "cuda/ahead.cuh"
#include "cuda/encode.cuh"
#include "cuda/real.h"

#if FASTAE_REAL_IS(FASTAE_REAL)

namespace fastae {

constexpr int kStream = 128 * kStrips;  // columns that a warp looks at in one go

// Entries of a list before it is cut: a few times more than bounds leave undecided.
FASTAE_INLINE int most_listed(const Encode& e) { return (int)(8 * e.k + 512); }

// A warp's row on its way, kRounds times kStream columns ahead: compilers, left to themselves, ask for a strip when they
// have looked at the one before. A lane reads what it asked for itself and waits for nobody.
constexpr int kRounds = 2;
typedef Four Round[kStrips][32];
FASTAE_INLINE Round* rounds_of_warp() {
  alignas(16) __shared__ Round round[kSelectThreads / 32][kRounds];
  return round[threadIdx.x / 32];
}

struct Ahead {
  const float* z;
  int whole;  // columns that come so
  Round* round;
  FASTAE_INLINE Ahead(const Encode& e, int64_t r)
      : z(e.z + r * e.chunk), whole(aligned(z) ? (int)e.columns() / kStream * kStream : 0), round(rounds_of_warp()) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) ask(i * kStream);
  }
  FASTAE_INLINE Round& at(int c) const { return round[c / kStream % kRounds]; }
  FASTAE_INLINE void ask(int c) const {
    const int lane = threadIdx.x % 32;
    if (c < whole) {
#pragma unroll
      for (int t = 0; t < kStrips; ++t) copy_ahead(&at(c)[t][lane], z + c + 128 * t + 4 * lane, true);
    }
    end_group();
  }
};

// Which of the columns c + 128 t + 4 lane + e of a row's chunk may pass its limit: bit 4 t + e. whole: all of them are
// there, in `round`, and what goes with them lies as Four does.
template <class Row>
FASTAE_INLINE unsigned marked(const Row& row, const Round& round, int columns, int c, bool whole, float limit) {
  const int lane = threadIdx.x % 32;
  const int own = c + 4 * lane;
  unsigned on = 0;
  if (whole) {
#pragma unroll 1  // two at a time would spill registers
    for (int t = 0; t < kStrips; ++t) {
      const auto at = row.four(own + 128 * t, round[t][lane]);
#pragma unroll
      for (int e = 0; e < 4; ++e) on |= (unsigned)row.passes(at, e, limit) << (4 * t + e);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < 4 * kStrips; ++i) {
      const int j = own + 128 * (i / 4) + i % 4;
      if (j < columns) on |= (unsigned)row.passes(row.one(j), 0, limit) << i;
    }
  }
  return on;
}

struct Held {
  int n;      // entries of a row's list
  Key least;  // its limit
};

// The chunk's part of rows top, top + 1, ..., a warp each, whose list `own` is; begins: whether it is looked at.
// cut(row, n, &least) leaves so many entries of a full list, fewer than 0 where the row is given up.
template <class Row, class Cut>
FASTAE_INLINE Held stream(const Encode& e, int64_t top, const Row& row, Ahead ahead, Held own, bool begins,
                          const Cut& cut) {
  __shared__ Held held_of[kSelectThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, most = most_listed(e);
  const List list = row.list;
  if (!row.whole) ahead.whole = 0;
  int c = begins ? 0 : (int)e.chunk;
  for (bool again = true; again;) {
    const float limit_now = own.least ? number_of(own.least) : -Format<float>::inf;
    for (; c < e.columns() && own.n >= 0 && own.n <= most; c += kStream) {
      const bool whole = c < ahead.whole;
      const Round& round = ahead.at(c);
      wait_for_groups<kRounds - 1>();
      const unsigned on = marked(row, round, e.columns(), c, whole, limit_now);
      const int strips = __any_sync(0xffffffffu, on != 0) ? kStrips : 0;
#pragma unroll 1
      for (int t = 0; t < strips; ++t) {
        unsigned few = on >> (4 * t) & 15;
        if (!__any_sync(0xffffffffu, few != 0)) continue;
        const int first = c + 128 * t + 4 * lane;
        float high[4], low[4];
        if (few) few = row.undecided(first, whole, round[t][lane], few, own.least, high, low);
        int place = own.n;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const unsigned mask = __ballot_sync(0xffffffffu, few >> q & 1);
          place += __popc(mask & ((1u << lane) - 1));
          own.n += __popc(mask);
        }
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          if (!(few >> q & 1)) continue;
          list.z[place] = high[q];
          if (Row::kBounds) list.low[place] = low[q];
          list.latent[place++] = (int32_t)(e.first + first + q);
        }
      }
      ahead.ask(c + kRounds * kStream);
    }
    if (lane == 0) held_of[warp] = own;
    __syncthreads();
    again = false;
    for (int i = 0; i < warps; ++i) {
      Held other = held_of[i];
      if (other.n <= most) continue;
      other.n = cut(top + i, other.n, &other.least);
      if (threadIdx.x == 0) held_of[i] = other;
      again = true;
    }
    __syncthreads();
    own = held_of[warp];
    __syncwarp();
  }
  wait_for_groups<0>();
  return own;
}

// ---- z itself ---
struct ProductRow {
  const Encode& e;
  const float *z, *bias;
  List list;
  bool whole;
  static constexpr bool kBounds = false;
  FASTAE_INLINE ProductRow(const Encode& encode, int64_t r)
      : e(encode),
        z(e.z + r * e.chunk),
        bias(e.b ? e.b + e.first : nullptr),
        list(e.list_of(r)),
        whole(aligned(bias)) {}
  FASTAE_INLINE Four four(int c, Four value) const {
    if (bias) {
      const Four own = *(const Four*)(bias + c);
#pragma unroll
      for (int q = 0; q < 4; ++q) value.v[q] += own.v[q];
    }
    return value;
  }
  FASTAE_INLINE Four one(int c) const { return {bias ? z[c] + bias[c] : z[c]}; }
  FASTAE_INLINE bool passes(const Four& value, int q, float limit) const { return !(e.score(value.v[q]) <= limit); }
  FASTAE_INLINE unsigned undecided(int c, bool four_there, Four value, unsigned few, Key least, float (&high)[4],
                                   float (&)[4]) const {
    if (four_there) value = four(c, value);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (!(few >> q & 1)) continue;
      high[q] = four_there ? value.v[q] : one(c + q).v[0];
      const Key key = key_of(e.score(high[q]));
      if (key <= least || key == key_of(-Format<float>::inf)) few &= ~(1u << q);  // a NaN is marked in any case
    }
    return few;
  }
};

// encode_filter of the k largest
FASTAE_KERNEL(stream_filter, kSelectThreads, 3) {
  const Encode e(o);
  if (e.k < 1) return;
  const int64_t top = (int64_t)blockIdx.x * (blockDim.x / 32), r = smaller(top + threadIdx.x / 32, o.m - 1);
  const bool mine = top + threadIdx.x / 32 < o.m && e.held[r] >= 0;
  const Ahead ahead(e, r);
  const Held own = stream(
      e, top, ProductRow(e, r), ahead, {mine ? e.held[r] : 0, e.limit[r]}, mine,
      [&](int64_t of, int n, Key* least) { return keep_largest(e.list_of(of), n, (int)e.k, e.magnitude, least); });
  if (mine && threadIdx.x % 32 == 0) e.held[r] = own.n, e.limit[r] = own.least;
}

}  // namespace fastae
#endif
