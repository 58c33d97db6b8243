// Fibers, barriers and warps of shim.h, with every device kernel compiled for the host.
#include "cuda/host/shim.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <utility>
#include <vector>

#include "cuda/kernels.cu"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" {
__attribute__((visibility("hidden"))) extern unsigned char __start_fastae_shared[], __stop_fastae_shared[];
}

namespace shim {

shim_dim thread, block, block_size, grid_size;

namespace {

constexpr size_t kStack = 64 << 10;
constexpr unsigned kMostThreads = 1024;
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kDrift = false;  // sanitizers are slow enough
#else
constexpr bool kDrift = true;
#endif
enum State { fresh, ready, at_block, at_warp, done };

// Callee-saved registers on the fiber's own stack, switched by a few instructions; ucontext elsewhere, and where a
// sanitizer wants to know of it.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define FASTAE_FAST_SWITCH 1
extern "C" void fastae_switch(void** save, void* to);
__asm__(
    ".text\n.type fastae_switch,@function\nfastae_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size fastae_switch,.-fastae_switch\n");
#endif

struct Copy {
  void* to;
  const void* from;  // null for zeros
  void make() const {
    if (from) memcpy(to, from, 16);
    else memset(to, 0, 16);
  }
};

struct Fiber {
  unsigned char* stack = nullptr;
#ifdef FASTAE_FAST_SWITCH
  void* top = nullptr;
#else
  ucontext_t context;
  void* fake = nullptr;
#endif
  State state = done;
  unsigned mask = 0;                     // of the warp operation it waits at
  int site = 0;                          // and where that is, or the barrier
  unsigned parity = 0;                   // which of the warp's two sets of values the next operation uses
  std::vector<Copy> open;                // copies of a group that is not closed
  std::deque<std::vector<Copy>> groups;  // closed, the oldest first
};

Fiber fibers[kMostThreads];
uint64_t values[kMostThreads / 32][2][32];
Fiber* current = nullptr;
unsigned n_threads = 0;
const char* failure = nullptr;
unsigned char* dynamic = nullptr;
void (*kernel)(const fastae::Launch);
const fastae::Launch* argument;
uint64_t random_state = 1;
#ifdef FASTAE_FAST_SWITCH
void* scheduler = nullptr;
#else
ucontext_t scheduler;
void* scheduler_fake = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
#endif

uint64_t draw() {  // splitmix64
  uint64_t z = (random_state += 0x9E3779B97F4A7C15ull);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

void shuffle(std::vector<unsigned>& order) {
  for (size_t i = order.size(); i > 1; --i) {
    const size_t j = draw() % i;
    const unsigned t = order[i - 1];
    order[i - 1] = order[j];
    order[j] = t;
  }
}

void place(unsigned id) {
  thread = {id % block_size.x, id / block_size.x % block_size.y, id / (block_size.x * block_size.y)};
}

void leave() {  // a fiber to the scheduler
#ifdef FASTAE_FAST_SWITCH
  fastae_switch(&current->top, scheduler);
#else
  Fiber* self = current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(self->state == done ? nullptr : &self->fake, scheduler_stack, scheduler_size);
#endif
  swapcontext(&self->context, &scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake, &scheduler_stack, &scheduler_size);
#endif
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  kernel(*argument);
  current->state = done;
  leave();
  abort();
}

void resume(unsigned id) {
  Fiber& f = fibers[id];
  current = &f;
  place(id);
  const bool begins = f.state == fresh;
  f.state = ready;
#ifdef FASTAE_FAST_SWITCH
  if (begins) {
    void** top = (void**)(f.stack + kStack - id % 64 * 192);  // else all stacks share a few sets of the cache
    *--top = nullptr;  // so that the stack is aligned as a call leaves it when entry begins
    *--top = (void*)entry;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    f.top = top;
  }
  fastae_switch(&scheduler, f.top);
#else
  if (begins) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, f.stack, kStack);
#endif
  swapcontext(&scheduler, &f.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
#endif
}

// Lets threads go on that wait for nobody any more; false when none can.
bool release() {
  bool any = false;
  unsigned waiting = 0, finished = 0;
  for (unsigned i = 0; i < n_threads; ++i) {
    waiting += fibers[i].state == at_block;
    finished += fibers[i].state == done;
  }
  if (waiting && waiting + finished == n_threads) {
    int site = 0;
    for (unsigned i = 0; i < n_threads; ++i) {
      if (fibers[i].state != at_block) continue;
      if (site && fibers[i].site != site) failure = "threads of a block wait at different barriers";
      site = fibers[i].site;
      fibers[i].state = ready;
    }
    return true;
  }
  for (unsigned first = 0; first < n_threads; first += 32) {
    const unsigned lanes = n_threads - first < 32 ? n_threads - first : 32;
    unsigned refused = 0;  // the last mask whose lanes have not all arrived
    for (unsigned i = 0; i < lanes; ++i) {
      const unsigned mask = fibers[first + i].mask;
      const int site = fibers[first + i].site;
      if (fibers[first + i].state != at_warp || mask == refused) continue;
      bool all = true;
      for (unsigned l = 0; all && l < lanes; ++l) {
        const Fiber& f = fibers[first + l];
        all = !(mask >> l & 1) || (f.state == at_warp && f.mask == mask && f.site == site);
      }
      for (unsigned l = 0; all && l < lanes; ++l)
        if (mask >> l & 1) fibers[first + l].state = ready;
      any = any || all;
      if (!all) refused = mask;
    }
  }
  return any;
}

// A pattern in shared memory, NaN as numbers, so that nothing is read that no thread wrote. Not by memset: a sanitizer would find the
// guards between the arrays.
#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize_address))
#endif
void spoil_shared() {
  for (volatile unsigned char* p = __start_fastae_shared; p < __stop_fastae_shared; ++p) *p = 0xFF;
}

void run_block() {
  spoil_shared();
  std::vector<unsigned> order;
  const bool drifting = kDrift && n_threads > 32 && draw() % 2;  // whether warps drift apart: it costs time
  for (unsigned i = 0; i < n_threads; ++i) {
    fibers[i].state = fresh;
    fibers[i].parity = 0;
    fibers[i].open.clear();
    fibers[i].groups.clear();
    if (!fibers[i].stack) fibers[i].stack = (unsigned char*)aligned_alloc(64, kStack);
  }
  for (;;) {
    order.clear();
    bool left = false;
    const bool released = release();
    for (unsigned i = 0; i < n_threads; ++i) {
      if (fibers[i].state == fresh || fibers[i].state == ready) order.push_back(i);
      left = left || fibers[i].state != done;
    }
    if (!left || failure) return;
    if (order.empty() && !released) {
      failure = "threads wait at a barrier or warp operation for others that never come";
      return;
    }
    shuffle(order);
    const uint64_t held_back = drifting ? draw() & draw() : 0;  // a quarter of the warps
    for (unsigned id : order) {
      if (held_back >> id / 32 & 1) continue;
      resume(id);
      if (failure) return;
    }
  }
}

unsigned number() { return thread.x + block_size.x * (thread.y + block_size.y * thread.z); }

void wait(State state, unsigned mask, int site) {
  Fiber* const self = current;
  const shim_dim mine = thread;
  self->mask = mask;
  self->site = site;
  self->state = state;
  leave();
  current = self;
  thread = mine;
}

}  // namespace

int lane() { return (int)(number() % 32); }
unsigned char* dynamic_shared() { return dynamic; }

void fail(const char* why) {
  failure = why;
  current->state = done;
  leave();
  abort();
}

void block_barrier(int site) { wait(at_block, 0, site); }

uint64_t exchange(unsigned mask, uint64_t value, int from, int site) {
  const unsigned id = number(), warp = id / 32, own = id % 32;
  if (!(mask >> own & 1)) fail("a thread takes part in a warp operation whose mask does not name it");
  Fiber& f = fibers[id];
  uint64_t* const slot = values[warp][f.parity ^= 1];
  slot[own] = value;
  wait(at_warp, mask, site);
  if (!(mask >> from & 1) || warp * 32 + (unsigned)from >= n_threads) return value;  // undefined on a device
  return slot[from];
}

const uint64_t* exchange_all(uint64_t value, int site) {
  exchange(0xffffffffu, value, lane(), site);
  return values[number() / 32][current->parity];
}

void on_16_bytes(const void* p, const char* why) {
  if ((uintptr_t)p & 15) fail(why);
}

void copy_later(void* to, const void* from, bool there) {
  on_16_bytes(to, "a copy to shared memory does not go to 16 bytes");
  on_16_bytes(from, "a copy to shared memory does not come from 16 bytes");
  const Copy copy{to, there ? from : nullptr};
  if (draw() & 1) copy.make();
  else current->open.push_back(copy);
}

void close_group() { current->groups.push_back(std::exchange(current->open, {})); }

void finish_groups(int left) {
  std::deque<std::vector<Copy>>& groups = current->groups;
  for (; (int)groups.size() > left; groups.pop_front())
    for (const Copy& copy : groups.front()) copy.make();
}

unsigned ballot(unsigned mask, bool value, int site) {
  const unsigned id = number(), warp = id / 32, own = id % 32;
  if (!(mask >> own & 1)) fail("a thread takes part in a warp operation whose mask does not name it");
  Fiber& f = fibers[id];
  uint64_t* const slot = values[warp][f.parity ^= 1];
  slot[own] = value;
  wait(at_warp, mask, site);
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) && warp * 32 + l < n_threads && slot[l]) bits |= 1u << l;
  return bits;
}

}  // namespace shim

// Runs a kernel; null, or what went wrong.
extern "C" const char* fastae_host_launch(void* kernel, const unsigned* grid, const unsigned* block, size_t shared,
                                          const fastae::Launch* o, uint64_t seed) {
  using namespace shim;
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  n_threads = block[0] * block[1] * block[2];
  if (n_threads == 0 || n_threads > kMostThreads) return "a block has 1 to 1024 threads";
  if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
    return "a grid has 65,535 blocks along y and z at most";
  failure = nullptr;
  random_state = seed;
  shim::kernel = (void (*)(const fastae::Launch))kernel;
  argument = o;
  std::vector<unsigned char> memory(shared + 64);
  dynamic = (unsigned char*)(((uintptr_t)memory.data() + 63) / 64 * 64);
  std::vector<unsigned> order(grid[0] * grid[1] * grid[2]);
  for (size_t i = 0; i < order.size(); ++i) order[i] = (unsigned)i;
  shuffle(order);
  for (unsigned b : order) {
    shim::block = {b % grid[0], b / grid[0] % grid[1], b / (grid[0] * grid[1])};
    memset(memory.data(), 0xFF, memory.size());
    run_block();
    if (failure) return failure;
  }
  return nullptr;
}

extern "C" size_t fastae_launch_bytes() { return sizeof(fastae::Launch); }
extern "C" size_t fastae_step_bytes() { return sizeof(fastae::Step); }
