// Command caddy is the stock Caddy: its own main function with its standard modules, a peer of Tapestry's ingress.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() { caddycmd.Main() }
