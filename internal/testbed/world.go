package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"
)

// World is two federating homeservers, the link into A, and freshen before A where it was asked for.
type World struct {
	// Dir holds all data and logs of the run.
	Dir  string
	CA   *CA
	A, B *Dendrite
	// Link stands on A's federation address.
	Link *Link
	// Freshen is nil without [Options.Freshen].
	Freshen *Freshen

	http *http.Client
}

// Options say what a world is made of.
type Options struct {
	// Dir is an existing folder for data and logs. It is the caller's to remove.
	Dir string
	// Freshen puts freshen before A.
	Freshen bool
	// ManyRefreshes lifts freshen's limit for one destination, for tests that share B. That for one user stays.
	ManyRefreshes bool
	// Progress is told about builds that take minutes; nil for silence.
	Progress io.Writer
}

// Start builds what has to be built and starts a world. On an error nothing is left running. The caller closes it.
func Start(ctx context.Context, options Options) (*World, error) {
	w := &World{Dir: options.Dir, http: &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}}
	if err := w.start(ctx, options); err != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		return nil, errors.Join(err, w.Close(closing))
	}
	return w, nil
}

func (w *World) start(ctx context.Context, options Options) error {
	binary, err := BuildDendrite(ctx, options.Progress)
	if err != nil {
		return err
	}
	if w.CA, err = NewCA(w.Dir); err != nil {
		return err
	}
	if err := w.prepareA(ctx, binary); err != nil {
		return err
	}
	nameB, err := freePort(ctx, usable(ctx, addressB))
	if err != nil {
		return err
	}
	if w.B, err = newDendrite(ctx, binary, w.Dir, "B", nameB, nameB, w.CA, w.http); err != nil {
		return err
	}
	if err := together(func() error { return w.A.Start(ctx) }, func() error { return w.B.Start(ctx) }); err != nil {
		return err
	}
	if !options.Freshen {
		return nil
	}
	binary, err = BuildFreshen(ctx, w.Dir, options.Progress)
	if err != nil {
		return err
	}
	if w.Freshen, err = newFreshen(ctx, binary, w, options); err != nil {
		return err
	}
	return w.Freshen.Start(ctx)
}

// prepareA makes homeserver A and the link that stands on the address of its name.
func (w *World) prepareA(ctx context.Context, binary string) error {
	ip := usable(ctx, addressA)
	listener, err := listenFree(ctx, ip)
	if err != nil {
		return err
	}
	if err := w.linkA(ctx, binary, ip, listener); err != nil {
		_ = listener.Close()
		return err
	}
	return nil
}

func (w *World) linkA(ctx context.Context, binary string, ip netip.Addr, listener net.Listener) error {
	name, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil {
		return fmt.Errorf("the address of the link: %w", err)
	}
	behind, err := freePort(ctx, ip)
	if err != nil {
		return err
	}
	if w.A, err = newDendrite(ctx, binary, w.Dir, "A", name, behind, w.CA, w.http); err != nil {
		return err
	}
	w.Link, err = newLink(listener, w.A.certFile, w.A.keyFile, behind.String(), w.CA)
	return err
}

// Close stops everything, freshen first, and returns when it has stopped. The folder stays.
func (w *World) Close(ctx context.Context) error {
	var errs []error
	if w.Freshen != nil {
		errs = append(errs, w.Freshen.Stop(ctx))
	}
	errs = append(errs, together(func() error {
		if w.A == nil {
			return nil
		}
		return w.A.Stop(ctx)
	}, func() error {
		if w.B == nil {
			return nil
		}
		return w.B.Stop(ctx)
	}))
	if w.Link != nil {
		errs = append(errs, w.Link.close())
	}
	w.http.CloseIdleConnections()
	return errors.Join(errs...)
}

// TempDir makes a folder for a world. It is the caller's to remove.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", "freshen-world-")
	if err != nil {
		return "", fmt.Errorf("no folder for the testbed: %w", err)
	}
	return dir, nil
}

// together runs both and joins what went wrong.
func together(first, second func() error) error {
	done := make(chan error, 1)
	go func() { done <- second() }()
	err := first()
	return errors.Join(err, <-done)
}
