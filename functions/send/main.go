// Command send delivers mail: it leases batches, renders them and hands them to SMTP.
package main

import (
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/send"
)

func main() { fn.Main("send", send.Build) }
