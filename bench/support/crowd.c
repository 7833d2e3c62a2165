/*
 * The loud neighbours of bench/bystanders.ts: clients of Socket.IO that cost next to nothing, because in truth they are on other
 * machines, and here they share two cores with whom they disturb. Linux.
 *
 *   crowd <kind> <port they are at first> <port they come (back) to> <sockets> <seconds> <file of tokens, one a line>
 *
 * It says `ready` once all have joined their rooms, begins at SIGUSR2, says `done` with what it did, and keeps its sockets open
 * until SIGTERM. Whoever is closed comes back as socket.io-client does, after 0.5 to 1.5 s, and resumes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { AWAY, OPENING, GREETED, ENTERING, JOINING, LIVE };

/* What is kept of the beginning of each message; the rest is skipped. */
#define KEPT 1024
#define EVENTS 256
#define ROOMS 50
/* Connecting at the same time before it is `ready`. */
#define AT_ONCE 100
/* Part of all clients that come in a millisecond at most, twice what their times of 0.5 to 1.5 s make, and most that come at once. */
#define PER_MS 0.002
#define HEAP 20

struct client {
  int fd;
  enum state state;
  int port, stalls;
  double due; /* when it comes (back), ms */
  unsigned char in[KEPT];
  int have;
  long skip;
  unsigned long id;
  char position[160]; /* what it resumes from, as JSON */
};

static struct client *clients;
static char **tokens;
static int count, token_count, epoll_fd, live;
static const char *kind;
static volatile sig_atomic_t told_to_begin, told_to_end;
static unsigned long stored, refused, came_back, published;
static char padding[9000];

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void on_signal(int number) {
  if (number == SIGUSR2) told_to_begin = 1;
  else told_to_end = 1;
}

static int is(const char *name) { return strcmp(kind, name) == 0; }

static int room_of(struct client *c) { return is("slow-reader") ? 0 : (int)((c - clients) % ROOMS); }

static void leave(struct client *c) {
  if (c->state == LIVE) live--;
  close(c->fd);
  c->fd = -1;
  c->state = AWAY;
  c->due = now_ms() + 500 + rand() % 1000;
}

static void come(struct client *c) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(c->port)};
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
  int one = 1;
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) {
    perror("socket");
    exit(1);
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  c->state = OPENING;
  c->have = 0;
  c->skip = 0;
  if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) return leave(c);
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

/* A masked text frame, masked with zeros. Returns its length. */
static int frame(char *to, const char *text, int length) {
  int at = 0;
  to[at++] = (char)0x81;
  if (length < 126) to[at++] = (char)(0x80 | length);
  else {
    to[at++] = (char)(0x80 | 126);
    to[at++] = (char)(length >> 8);
    to[at++] = (char)length;
  }
  memset(to + at, 0, 4);
  memcpy(to + at + 4, text, length);
  return at + 4 + length;
}

static void say(struct client *c, const char *text, int length) {
  char bytes[8192];
  int size = frame(bytes, text, length);
  send(c->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void join(struct client *c) {
  char text[512];
  const char *from = c->position[0] ? c->position : "\"start\"";
  int length = snprintf(text, sizeof text, "42%lu[\"room.join\",{\"room\":\"%s-%d\",\"from\":%s}]", c->id++, kind, room_of(c), from);
  c->state = JOINING;
  say(c, text, length);
}

/* Several events in one write. A socket that has no room for all of them is given none, for its frames must stay whole. */
static int publish(struct client *c, int events, int bytes) {
  static char all[65536];
  char text[10000];
  int size = 0, queued = 0;
  for (int n = 0; n < events; n++) {
    int length = snprintf(text, sizeof text, "42%lu[\"event.publish\",{\"room\":\"%s-%d\",\"type\":\"note\",\"data\":\"%.*s\"}]",
                          c->id++, kind, room_of(c), bytes, padding);
    size += frame(all + size, text, length);
  }
  ioctl(c->fd, TIOCOUTQ, &queued);
  if (queued > 500000) return 0;
  if (send(c->fd, all, size, MSG_NOSIGNAL | MSG_DONTWAIT) != size) leave(c);
  return events;
}

static void remember(struct client *c, const char *text) {
  const char *begin = strstr(text, "\"position\":{"), *end = begin ? strchr(begin, '}') : NULL;
  if (!begin || end - begin >= (int)sizeof c->position) return;
  begin += strlen("\"position\":");
  memcpy(c->position, begin, end + 1 - begin);
  c->position[end + 1 - begin] = 0;
}

static void hear(struct client *c, const char *text) {
  char answer[6000];
  if (text[0] == '2' && text[1] == 0) say(c, "3", 1);
  else if (c->state == GREETED && text[0] == '0') {
    int length = snprintf(answer, sizeof answer, "40{\"token\":\"%s\"}", tokens[(c - clients) % token_count]);
    c->state = ENTERING;
    say(c, answer, length);
  } else if (c->state == ENTERING && strncmp(text, "40", 2) == 0) join(c);
  else if (c->state == JOINING && strncmp(text, "43", 2) == 0) {
    remember(c, text);
    c->state = LIVE;
    live++;
    came_back++;
  } else if (c->state == LIVE && strncmp(text, "43", 2) == 0) {
    if (strstr(text, "\"ok\":true")) stored++;
    else refused++;
  } else if (strncmp(text, "44", 2) == 0) {
    fprintf(stderr, "refused: %s\n", text);
    exit(1);
  }
}

/* Takes whole messages out of what has come. */
static void digest(struct client *c) {
  for (;;) {
    if (c->state == OPENING) {
      char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
      if (!end) return;
      if (memcmp(c->in, "HTTP/1.1 101", 12) != 0) return leave(c);
      int head = (int)((unsigned char *)end + 4 - c->in);
      memmove(c->in, c->in + head, c->have -= head);
      c->state = GREETED;
    }
    if (c->have < 2) return;
    int header = c->in[1] < 126 ? 2 : c->in[1] == 126 ? 4 : 10;
    if (c->have < header) return;
    long length = c->in[1];
    if (header == 4) length = c->in[2] << 8 | c->in[3];
    if (header == 10) length = (long)c->in[6] << 24 | c->in[7] << 16 | c->in[8] << 8 | c->in[9];
    int kept = header + length < KEPT - 1 ? (int)(header + length) : KEPT - 1;
    if (c->have < kept) return;
    char text[KEPT];
    memcpy(text, c->in + header, kept - header);
    text[kept - header] = 0;
    memmove(c->in, c->in + kept, c->have -= kept);
    c->skip = header + length - kept;
    hear(c, text);
    if (c->state == AWAY || c->skip > 0) return;
  }
}

static void receive(struct client *c) {
  static unsigned char bytes[65536];
  for (;;) {
    if (c->stalls && c->state == LIVE && told_to_begin) return;
    long got = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return leave(c);
    for (long at = 0; at < got;) {
      long skipped = c->skip < got - at ? c->skip : got - at;
      c->skip -= skipped;
      at += skipped;
      long room = KEPT - c->have, part = room < got - at ? room : got - at;
      memcpy(c->in + c->have, bytes + at, part);
      c->have += (int)part;
      at += part;
      if (part > 0) digest(c);
      if (c->state == AWAY) return;
    }
  }
}

static void open_websocket(struct client *c) {
  char text[512];
  int length = snprintf(text, sizeof text,
                        "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                        c->port);
  if (send(c->fd, text, length, MSG_NOSIGNAL) != length) leave(c);
}

/* One turn of at most a millisecond: what has arrived, then whose time it is to come. */
static void turn(int at_once) {
  struct epoll_event events[EVENTS];
  int n = epoll_wait(epoll_fd, events, EVENTS, 1);
  for (int i = 0; i < n; i++) {
    struct client *c = events[i].data.ptr;
    if (c->fd < 0) continue;
    if (events[i].events & (EPOLLERR | EPOLLHUP)) {
      leave(c);
      continue;
    }
    if (c->state == OPENING && (events[i].events & EPOLLOUT) && c->have == 0 && !(events[i].events & EPOLLIN)) open_websocket(c);
    if (c->fd >= 0 && (events[i].events & EPOLLIN)) receive(c);
  }
  double now = now_ms();
  int coming = 0;
  for (int i = 0; i < count; i++) {
    struct client *c = &clients[i];
    if (c->state != AWAY && c->state != LIVE) coming++;
  }
  /* Clients of many machines come one by one: where this program was kept waiting, they do not come in a heap when it goes on. */
  static double may_come, last;
  may_come += (now - last) * PER_MS * count;
  if (may_come > HEAP) may_come = HEAP;
  last = now;
  for (int i = 0; i < count && coming < at_once && may_come >= 1; i++) {
    struct client *c = &clients[i];
    if (c->state != AWAY || c->due > now) continue;
    come(c);
    coming++;
    may_come--;
  }
}

static char **lines(const char *path, int *n) {
  FILE *file = fopen(path, "r");
  char **all = NULL, line[8192];
  if (!file) {
    perror(path);
    exit(1);
  }
  for (*n = 0; fgets(line, sizeof line, file); (*n)++) {
    line[strcspn(line, "\n")] = 0;
    all = realloc(all, (*n + 1) * sizeof *all);
    all[*n] = strdup(line);
  }
  fclose(file);
  return all;
}

int main(int argc, char **argv) {
  if (argc != 7) return 2;
  kind = argv[1];
  int from = atoi(argv[2]), to = atoi(argv[3]);
  double seconds = atof(argv[5]);
  count = atoi(argv[4]);
  tokens = lines(argv[6], &token_count);
  struct rlimit files = {0};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGUSR2, on_signal);
  signal(SIGTERM, on_signal);
  memset(padding, 'x', sizeof padding - 1);
  epoll_fd = epoll_create1(0);
  clients = calloc(count, sizeof *clients);
  for (int i = 0; i < count; i++) clients[i] = (struct client){.fd = -1, .port = from, .stalls = is("slow-reader") && i >= 5};

  while (live < count) turn(AT_ONCE);
  puts("ready");
  fflush(stdout);
  while (!told_to_begin) turn(0);

  int rate = is("flood") ? 50 * 900 : is("busy") ? 490 : is("slow-reader") ? 90 : 0;
  double began = now_ms(), back = 0;
  came_back = 0;
  for (int i = 0; i < count; i++) clients[i].port = to;
  if (from == to && !rate)
    for (int i = 0; i < count; i++) leave(&clients[i]);
  int gone = 0;
  unsigned long tries = 0;
  while (rate ? now_ms() - began < seconds * 1000 : !back) {
    if (told_to_end) return 0;
    turn(count);
    if (live == 0) gone = 1;
    if (gone && live == count && !back) back = now_ms() - began;
    unsigned long due = (now_ms() - began) / 1000 * rate;
    for (int events = is("flood") ? 18 : 1; tries + events <= due; tries += events) {
      struct client *c = &clients[is("slow-reader") ? 0 : tries / events % count];
      if (c->state == LIVE) published += publish(c, events, is("slow-reader") ? 8000 : 200);
    }
  }
  if (rate) printf("done %lu events sent, %lu stored, %lu refused, %lu times back\n", published, stored, refused, came_back);
  else printf("done %d back after %.1f s, %lu came\n", count, back / 1000, came_back);
  fflush(stdout);
  while (!told_to_end) turn(count);
  return 0;
}
