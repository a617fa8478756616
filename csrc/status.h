/* Errors as values: a code for the caller's reaction, a sentence for the person who reads it. */
#ifndef Q35_STATUS_H
#define Q35_STATUS_H

enum {
    Q35_OK = 0,
    Q35_FORMAT,    /* a model file breaks its format or contradicts another */
    Q35_ARGUMENT,  /* a value is out of range */
    Q35_MEMORY,    /* the system has no memory left */
    Q35_CONTEXT,   /* more tokens than the session's context */
    Q35_CANCELLED, /* the poll callback asked to stop */
    Q35_FORKED,    /* used in a child process */
};

typedef struct qwen35_status {
    int code;
    char message[512];
} qwen35_status;

/* Fills `status` like printf and returns `code`, so that callers write `return q35_fail(...)`. */
int q35_fail(qwen35_status *status, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
