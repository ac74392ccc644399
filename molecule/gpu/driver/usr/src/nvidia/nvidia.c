/* Stands for the driver: built and signed, never loaded. */
#include <linux/module.h>

MODULE_LICENSE("GPL");
MODULE_VERSION("@VERSION@");
