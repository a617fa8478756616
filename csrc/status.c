/* status.c: formats an error message into the caller's status. Allocates nothing. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>

int q35_fail(qwen35_status *status, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    status->code = code;
    vsnprintf(status->message, sizeof status->message, format, args);
    va_end(args);
    return code;
}
