package homeserver_test

import (
	"testing"

	"freshen/internal/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }
