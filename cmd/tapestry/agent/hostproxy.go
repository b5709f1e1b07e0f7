package agent

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/services/hostproxy"
)

// hostProxyConfig holds the flags of the host proxy.
type hostProxyConfig struct {
	addr  string // "" for none
	uids  cli.IntSlice
	users []uint32 // of uids; nil for everybody
	open  atomic.Bool
}

func (c *hostProxyConfig) flags() []cli.Flag {
	const category = "Host proxy"
	return []cli.Flag{
		&cli.StringFlag{Name: "host-proxy", Category: category, Usage: "`ADDR` on localhost, or unix:PATH, to serve SOCKS5 and HTTP CONNECT into the cluster on, for processes of the node where it has no host TAP (default: none)", Destination: &c.addr},
		&cli.IntSliceFlag{Name: "host-proxy-uid", Category: category, Usage: "`UID` of a user who may use --host-proxy; repeatable (default: every user of the node)", Destination: &c.uids},
	}
}

// parse checks the flags.
func (c *hostProxyConfig) parse() (err error) {
	if c.users, err = users("host-proxy-uid", c.uids.Value()); err != nil {
		return err
	}
	if c.addr == "" {
		return nil
	}
	if err := hostproxy.Check(c.addr); err != nil {
		return fmt.Errorf("--host-proxy %w", err)
	}
	return nil
}

// users returns the numbers of users that a flag names.
func users(flag string, uids []int) (list []uint32, err error) {
	for _, uid := range uids {
		if uid < 0 || int64(uid) > 1<<32-2 {
			return nil, fmt.Errorf("--%s %d is not the number of a user", flag, uid)
		}
		list = append(list, uint32(uid))
	}
	return list, nil
}

// listensAt returns where the host proxy listens at the moment; "" for nowhere.
func (c *hostProxyConfig) listensAt() string {
	if !c.open.Load() {
		return ""
	}
	return c.addr
}

const adviceHostProxy = "processes of this node do not come into the cluster by the host proxy; choose another address with --host-proxy"

// serveHostProxy serves the host proxy until ctx ends. If the address is taken, only the host proxy is missing.
func (a *agent) serveHostProxy(ctx context.Context, serve func(context.Context, net.Listener) error) {
	if a.hostProxy.addr == "" {
		return
	}
	l, err := hostproxy.Listen(a.hostProxy.addr)
	if err == nil {
		a.hostProxy.open.Store(true)
		err = serve(ctx, l)
		a.hostProxy.open.Store(false)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Error(adviceHostProxy, "err", err)
	}
}
