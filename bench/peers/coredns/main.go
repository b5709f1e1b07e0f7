// Command coredns is the stock CoreDNS: its own main function with its default plugins, a peer of Tapestry's DNS
// server.
package main

import (
	_ "github.com/coredns/coredns/core/plugin"
	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
