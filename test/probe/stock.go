package probe

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/overlay/stock"
	"tapestry.dev/tapestry/test/serve"
)

// StockConfig describes a stock device in terms of the command line.
type StockConfig struct {
	Key            string // file with the private key
	Peer, Endpoint string
	Addrs          []string
	Allowed        []string
}

// StockWireGuard runs an unmodified wireguard-go device in this namespace, with addresses and routes. started is called
// when the device is up.
func StockWireGuard(ctx context.Context, c StockConfig, started func()) error {
	key, err := overlay.LoadOrCreateKey(c.Key)
	if err != nil {
		return err
	}
	peer := stock.Peer{}
	if peer.PublicKey, err = overlay.ParsePublicKey(c.Peer); err != nil {
		return err
	}
	if peer.Endpoint, err = netip.ParseAddrPort(c.Endpoint); err != nil {
		return err
	}
	for _, a := range c.Allowed {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return err
		}
		peer.AllowedIPs = append(peer.AllowedIPs, p)
	}
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = stock.Run(ctx, stock.Config{
		Name: "wg0", PrivateKey: key, ListenPort: 51820, Peers: []stock.Peer{peer}, MTU: 1420,
		Ready: func(d stock.Device) {
			if err := configure(d.Name, c.Addrs, peer.AllowedIPs); err != nil {
				failed <- err
				cancel()
				return
			}
			started()
		},
	})
	select {
	case err := <-failed:
		return err
	default:
		return err
	}
}

func configure(name string, addrs []string, routes []netip.Prefix) error {
	if err := tap.SetUp(nil, name); err != nil {
		return err
	}
	for _, text := range addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := tap.AddAddr(nil, name, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	for _, r := range routes {
		if err := tap.AddRoute(nil, name, tap.Route{Dst: r}); err != nil {
			return err
		}
	}
	return nil
}

// Serve runs the built-in server on a TCP and UDP port. started is called when the server answers.
func Serve(ctx context.Context, name string, port int, started func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- serve.Run(ctx, serve.Config{Name: name, TCP: []int{port}, UDP: []int{port}}) }()
	for {
		a := Ask(ctx, Request{Network: "tcp", Addr: "127.0.0.1:" + strconv.Itoa(port), Body: "ready?", Timeout: time.Second})
		switch {
		case a.Error == "":
			started()
			return <-done
		case a.Error != "refused":
			return fmt.Errorf("the server does not answer: %s", a.Error)
		}
		select {
		case err := <-done:
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}
