// Package stock runs an unmodified wireguard-go device on a kernel TUN. Tests use it as the far end, to prove that
// Tapestry speaks WireGuard, and benchmarks compare Tapestry's tunnel with it.
package stock

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"tapestry.dev/tapestry/overlay"
)

// Config describes the device.
type Config struct {
	// Name is the name of the TUN interface that Run creates. The interface vanishes when Run returns.
	Name       string
	PrivateKey overlay.PrivateKey
	// ListenPort is the UDP port; 0: any.
	ListenPort uint16
	Peers      []Peer
	// MTU in bytes of the TUN interface; 0: 1420.
	MTU int
	// Ready is called once the interface exists and the port is bound. The caller sets the interface's addresses and
	// routes, and sets it up. nil: nothing is called.
	Ready func(Device)
	// Logger; nil: slog.Default.
	Logger *slog.Logger
}

// Peer is one [Peer] section of wg(8)'s configuration.
type Peer struct {
	PublicKey overlay.PublicKey
	// Endpoint may be invalid: the device then waits until the peer speaks first.
	Endpoint   netip.AddrPort
	AllowedIPs []netip.Prefix
}

// Device describes the device that Run made.
type Device struct {
	// Name is the interface's real name.
	Name string
	Port uint16
}

// Run runs the device until ctx ends. It needs CAP_NET_ADMIN in the network namespace of the calling thread.
func Run(ctx context.Context, c Config) error {
	if c.PrivateKey.IsZero() {
		return errors.New("run stock WireGuard: no private key")
	}
	if c.MTU == 0 {
		c.MTU = device.DefaultMTU
	}
	t, err := tun.CreateTUN(c.Name, c.MTU)
	if err != nil {
		return fmt.Errorf("run stock WireGuard: create TUN %s: %w", c.Name, err)
	}
	return run(ctx, c, t)
}

func run(ctx context.Context, c Config, t tun.Device) error {
	log := c.Logger
	if log == nil {
		log = slog.Default()
	}
	dev := device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { log.Warn("stock wireguard: " + fmt.Sprintf(format, args...)) },
	})
	defer dev.Close()
	if err := dev.SetPrivateKey(device.NoisePrivateKey(c.PrivateKey.Reveal())); err != nil {
		return fmt.Errorf("run stock WireGuard: %w", err)
	}
	if err := dev.IpcSet(c.text()); err != nil {
		return fmt.Errorf("run stock WireGuard: %w", err)
	}
	if err := dev.Up(); err != nil {
		return fmt.Errorf("run stock WireGuard: %w", err)
	}
	if c.Ready != nil {
		name, err := t.Name()
		if err != nil {
			return fmt.Errorf("run stock WireGuard: %w", err)
		}
		port, err := listenPort(dev)
		if err != nil {
			return fmt.Errorf("run stock WireGuard: %w", err)
		}
		c.Ready(Device{Name: name, Port: port})
	}
	select {
	case <-ctx.Done():
		return nil
	case <-dev.Wait():
		return errors.New("run stock WireGuard: the device closed, its interface may have been removed")
	}
}

// text returns the configuration without the private key, in the device's configuration protocol.
func (c Config) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "listen_port=%d\n", c.ListenPort)
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.PublicKey[:]))
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		for _, a := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	return b.String()
}

func listenPort(dev *device.Device) (port uint16, err error) {
	text, err := dev.IpcGet()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if _, err := fmt.Sscanf(line, "listen_port=%d", &port); err == nil {
			return port, nil
		}
	}
	return 0, errors.New("the device has no port")
}
