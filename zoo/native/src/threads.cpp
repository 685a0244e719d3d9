// The thread pool: as many threads as the process may run on, woken for one loop at a time.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "kernels.h"

namespace zoo {
namespace {

struct Loop {
    zoo_body body;
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};

    void run() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, i);
    }
};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

int64_t available() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    unsigned n = std::thread::hardware_concurrency();
    return n ? n : 1;
}

// Which core each thread of a pool stays on, the first being the caller's, which is free; none if there are other cores.
// A worker that has slept is else often woken on its caller's core, and waits there for milliseconds while another is idle.
std::vector<int> cores_of([[maybe_unused]] int64_t threads) {
    std::vector<int> cores;
#if defined(__linux__)
    cpu_set_t set;
    if (threads != available() || sched_getaffinity(0, sizeof set, &set) != 0) return cores;
    for (int core = 0; core < CPU_SETSIZE; ++core)
        if (CPU_ISSET(core, &set)) cores.push_back(core);
#endif
    return cores;
}

void stay_on([[maybe_unused]] int core) {
#if defined(__linux__)
    if (core < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#endif
}

// How often a thread looks before it sleeps, some tens of microseconds: loops follow each other more quickly than that,
// and their last bodies end more quickly, than a thread is woken.
constexpr int kLooks = 4000;

class Pool {
  public:
    explicit Pool(int64_t threads) {
        const auto cores = cores_of(threads);
        for (int64_t i = 1; i < threads; ++i)
            workers_.emplace_back([this, core = cores.empty() ? -1 : cores[(size_t)i]] {
                stay_on(core);
                work();
            });
    }

    ~Pool() {
        stop_.store(true);
        announce();
        for (auto& worker : workers_) worker.join();
    }

    void run(Loop& loop) {
        loop_.store(&loop);
        announce();
        loop.run();
        loop_.store(nullptr);  // whoever comes now is too late
        // no sleep: a worker would wake this thread on its own core, which it does not leave
        for (int look = 0; active_.load() != 0; ++look) look < kLooks ? pause() : std::this_thread::yield();
    }

  private:
    // A worker that sleeps has counted itself before it looked at the generation for the last time.
    void announce() {
        generation_.fetch_add(1);
        if (sleepers_.load() == 0) return;
        { std::lock_guard<std::mutex> lock(mutex_); }  // between its look and its sleep
        wake_.notify_all();
    }

    void work() {
        for (int64_t seen = 0;;) {
            for (int look = 0; look < kLooks && generation_.load(std::memory_order_acquire) == seen; ++look) pause();
            if (generation_.load() == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                sleepers_.fetch_sub(1);
            }
            seen = generation_.load();
            if (stop_.load()) return;
            // counted before it looks for the loop: a loop whose end has not seen the count is not found any more
            active_.fetch_add(1);
            if (Loop* loop = loop_.load()) loop->run();
            active_.fetch_sub(1);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int64_t> generation_{0}, active_{0}, sleepers_{0};
    std::atomic<Loop*> loop_{nullptr};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

struct State {
    std::mutex mutex;  // held while a loop runs on the pool
    Pool* pool = nullptr;
    int64_t started = 0;
    std::atomic<int64_t> wanted{0};
    std::atomic<zoo_parallel_for> callers{nullptr};
    std::atomic<void*> user{nullptr};
};

// Never destroyed: threads may still call while the process ends. After a fork the child has none of the pool's
// threads, so it starts from a new state; the old one is leaked.
std::atomic<State*> state{nullptr};

State& current() {
    State* found = state.load(std::memory_order_acquire);
    if (found) return *found;
    State* fresh = new State;
    if (state.compare_exchange_strong(found, fresh)) {
#if defined(__unix__) || defined(__APPLE__)
        static std::once_flag once;
        std::call_once(once, [] {
            pthread_atfork(nullptr, nullptr, [] {
                State* old = state.load();
                State* fresh = new State;
                fresh->wanted = old ? old->wanted.load() : 0;
                state.store(fresh);
            });
        });
#endif
        return *fresh;
    }
    delete fresh;
    return *found;
}

// Set while this thread runs a body: a loop within a loop runs where it is.
thread_local bool inside = false;

// The pool that an adapter has lent to this thread.
thread_local const zoo_pool_of* lent = nullptr;

}  // namespace

int64_t threads() {
    if (lent) return lent->threads;
    int64_t wanted = current().wanted.load(std::memory_order_relaxed);
    if (wanted > 0) return wanted;
    wanted = available();
    current().wanted.store(wanted, std::memory_order_relaxed);
    return wanted;
}

void parallel(int64_t count, zoo_body body, void* context) {
    if (count <= 0) return;
    if (const zoo_pool_of* pool = lent) {
        if (count > 1 && pool->threads > 1) return pool->parallel_for(pool->user, count, body, context);
        for (int64_t i = 0; i < count; ++i) body(context, i);
        return;
    }
    State& state = current();
    if (zoo_parallel_for callers = state.callers.load(std::memory_order_acquire)) {
        callers(state.user.load(std::memory_order_acquire), count, body, context);
        return;
    }
    int64_t want = threads();
    std::unique_lock<std::mutex> lock(state.mutex, std::defer_lock);
    if (count == 1 || want == 1 || inside || !lock.try_lock()) {
        for (int64_t i = 0; i < count; ++i) body(context, i);
        return;
    }
    if (state.started != want) {
        delete state.pool;
        state.pool = nullptr;
        state.started = 0;
        try {
            state.pool = new Pool(want);
            state.started = want;
        } catch (...) {  // no more threads to be had: the loop runs on this one
            lock.unlock();
            for (int64_t i = 0; i < count; ++i) body(context, i);
            return;
        }
    }
    Loop loop{body, context, count};
    inside = true;
    state.pool->run(loop);
    inside = false;
}

}  // namespace zoo

extern "C" {

int zoo_set_threads(int64_t threads) {
    if (threads < 0 || threads > 4096) return ZOO_BAD_ARGUMENT;
    zoo::current().wanted.store(threads, std::memory_order_relaxed);
    return ZOO_OK;
}

int64_t zoo_get_threads(void) { return zoo::threads(); }

const zoo_pool_of* zoo_lend_pool(const zoo_pool_of* pool) {
    const zoo_pool_of* before = zoo::lent;
    zoo::lent = pool;
    return before;
}

void zoo_set_parallel_for(zoo_parallel_for parallel_for, void* user) {
    zoo::current().user.store(user, std::memory_order_release);
    zoo::current().callers.store(parallel_for, std::memory_order_release);
}
}
